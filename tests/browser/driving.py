"""Driving a notebook in JupyterLab: wait for its kernel, press a slider's keys, read and keep what the page shows."""

from pathlib import Path

SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"

# what the page shows: the readout, the first points of every trace, and the drawn curve
SEEN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: document.querySelector('[role=status][aria-live=polite]').textContent,
    data: JSON.stringify(plot.data.map(trace => values(trace.y).slice(0, 80))),
    path: [...plot.querySelectorAll('.scatterlayer path.js-line')].map(path => path.getAttribute('d')).join(' '),
  };
}"""


def wait_idle(page):
    page.wait_for_function(
        """() => {
          const widget = window.jupyterapp?.shell?.currentWidget;
          return widget?.context?.isReady && widget?.sessionContext?.session?.kernel?.status === 'idle';
        }"""
    )


def press(page, key, k=0):
    """Press a key on slider k of those that are seen, and wait until plot k is drawn; milliseconds to the picture."""
    page.evaluate(
        """k => {
          const plot = document.querySelectorAll('.js-plotly-plot')[k];
          const slider = [...document.querySelectorAll('[role=slider]')].filter(s => s.offsetParent)[k];
          slider.focus();
          window.drawn = new Promise(done => slider.addEventListener('keydown', () => {
            const start = performance.now();
            plot.once('plotly_afterplot', () => done(performance.now() - start));
          }, {once: true}));
        }""",
        k,
    )
    page.keyboard.press(key)
    return page.evaluate("() => window.drawn")


def changed(page, before, what="data", *, seen=SEEN):
    """What `seen` tells of the page once its entry `what` is other than before."""
    other = f"([before, what]) => JSON.stringify(({seen})()[what]) !== JSON.stringify(before)"
    page.wait_for_function(other, arg=[before[what], what], timeout=20_000)
    page.wait_for_timeout(800)
    return page.evaluate(seen)


def kept(page, name):
    """Put the last cell's output, a whole explorer, on a screenshot in runs/screenshots/."""
    page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    page.locator(".jp-OutputArea-output").last.screenshot(path=SCREENSHOTS / f"{name}.png")
