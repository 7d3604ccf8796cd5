"""Driving a notebook in a browser: wait for its kernel, press a slider's keys, click, read and keep what is shown."""

import http.client
import os
import socket
import statistics
import subprocess
import time
from contextlib import closing, contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path

import pytest

SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"
DELAYS = {}  # {explorer: (milliseconds from key to picture, the machine's load)}, told at the end of the session
SLOW = 500  # milliseconds that a median must not reach while a processor is free; 100 are wanted

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


@contextmanager
def served(command, folder, environment):
    """Address of the server that `command`, told a free port, starts in this folder; stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command(port), env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_server(server, port, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for_server(server, port, log, seconds=120):
    for _ in range(4 * seconds):
        if server.poll() is not None:
            break
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/api")
                return connection.getresponse().read()
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def new_page(chromium):
    """A page in which plots may take their time to start: after two seconds anywidget would send them nothing more."""
    page = chromium.new_page(viewport={"width": 1250, "height": 1000})
    page.set_default_timeout(90_000)
    page.add_init_script("AbortSignal.timeout = (late => ms => late(30 * ms))(AbortSignal.timeout.bind(AbortSignal))")
    return page


def wait_idle(page):
    page.wait_for_function(
        """() => {
          const widget = window.jupyterapp?.shell?.currentWidget;
          return widget?.context?.isReady && widget?.sessionContext?.session?.kernel?.status === 'idle';
        }"""
    )


def listen(page):
    """Collect what the page's console complains of from now on in `page.errors`."""
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))


def press(page, key, k=0, slider=None):
    """Press a key on a slider of those that are seen (None: number k), until plot k is drawn; milliseconds to that."""
    page.evaluate(
        """([k, number]) => {
          const plot = document.querySelectorAll('.js-plotly-plot')[k];
          const slider = [...document.querySelectorAll('[role=slider]')].filter(s => s.offsetParent)[number];
          slider.focus();
          window.drawn = new Promise(done => slider.addEventListener('keydown', () => {
            const start = performance.now();
            plot.once('plotly_afterplot', () => done(performance.now() - start));
          }, {once: true}));
        }""",
        [k, k if slider is None else slider],
    )
    page.keyboard.press(key)
    delay = page.evaluate("() => Promise.race([window.drawn, new Promise(late => setTimeout(late, 20_000, null))])")
    assert delay is not None, f"{key} did not change plot {k}"
    return delay


def timed(page, explorer, *keys, presses=12, **where):
    """Press the keys by turns as `press` does; how long each took to be drawn is told at the end of the session."""
    delays = [press(page, key, **where) for key in islice(cycle(keys), presses)]
    load = os.getloadavg()[0]
    DELAYS[explorer] = delays, load
    assert statistics.median(delays) < SLOW * max(1, load / os.cpu_count()), (
        f"{explorer}: from key to picture {delays} ms"
    )


def click_point(page, trace, i=0, k=0):
    """Click with the mouse on point i of the trace of this name, in plot k."""
    page.locator(".js-plotly-plot").nth(k).scroll_into_view_if_needed()
    at = page.evaluate(
        """([name, i, k]) => {
          const plot = document.querySelectorAll('.js-plotly-plot')[k], layout = plot._fullLayout;
          const trace = plot._fullData.find(trace => trace.name === name), box = plot.getBoundingClientRect();
          const axis = name => layout[name[0] + 'axis' + name.slice(1)];
          const place = (name, value) => axis(name)._offset + axis(name).d2p(value);
          return [box.left + place(trace.xaxis, trace.x.at(i)), box.top + place(trace.yaxis, trace.y.at(i))];
        }""",
        [trace, i, k],
    )
    page.mouse.move(*at)
    page.mouse.click(*at)


def changed(page, before, what="data", *, seen=SEEN):
    """What `seen` tells of the page once its entry `what` is other than before."""
    other = f"([before, what]) => JSON.stringify(({seen})()[what]) !== JSON.stringify(before)"
    page.wait_for_function(other, arg=[before[what], what], timeout=20_000)
    page.wait_for_timeout(800)
    return page.evaluate(seen)


def kept(page, name, k=0):
    """Put the output with plot k, a whole explorer, on a screenshot in runs/screenshots/."""
    page.locator(".js-plotly-plot").nth(k).scroll_into_view_if_needed()
    output(page, k).screenshot(path=SCREENSHOTS / f"{name}.png")


def output(page, k=0):
    return page.locator(".jp-OutputArea-output", has=page.locator(".js-plotly-plot")).nth(k)


def kept_in_the_dark(page, name, k=0):
    """The same in JupyterLab's dark theme, where what is written outside the plot must stand out."""
    set_theme(page, "JupyterLab Dark")
    kept(page, f"{name}_dark", k)
    faint = output(page, k).evaluate(FAINT)
    set_theme(page, "JupyterLab Light")
    assert not faint, f"hard to read in the dark: {faint}"


def set_theme(page, theme):
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
    page.wait_for_function("() => !document.getElementById('jupyterlab-splash')")  # it lies over the picture


# [text, its contrast to what is behind it] of the texts outside plots where it is below 3 to 1
FAINT = """output => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(output, NodeFilter.SHOW_TEXT), faint = [];
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (!/[\\p{L}\\p{N}]/u.test(text) || !element.getClientRects().length) continue;
    if (element.closest('.js-plotly-plot, style, :disabled')) continue;
    const [own, paper] = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
    const contrast = (Math.max(own, paper) + 0.05) / (Math.min(own, paper) + 0.05);
    if (contrast < 3) faint.push([text, contrast]);
  }
  return faint;
}"""


def walked_by_tab(page, k=0):
    """Whether Tab goes through all controls of explorer k as they are read: row by row, from left to right."""
    controls = output(page, k).locator(CONTROLS)
    controls.first.focus()
    places = []
    while len(places) < controls.count():
        places.append(page.evaluate(PLACE))
        page.keyboard.press("Tab")
    if None in places:
        return False
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(places)]
    return all(down > ROW or (abs(down) <= ROW and right > 0) for down, right in steps)


ROW = 15  # pixels by which the middles of a row's controls differ, at most
CONTROLS = (
    ":is([role=slider], [contenteditable=true], select, button, input):not(:disabled):not(.js-plotly-plot *):visible"
)
# [middle, left] in the explorer of the control that has the focus; null outside it, and in its plot
PLACE = """() => {
  const e = document.activeElement, box = e.getBoundingClientRect(), all = e.closest('.jp-OutputArea-output');
  if (!all || e.closest('.js-plotly-plot')) return null;
  return [box.top + box.height / 2 - all.getBoundingClientRect().top, box.left];
}"""
