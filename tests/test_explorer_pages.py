"""The page that every explorer writes."""

import plotly.graph_objects as go

from wsnotebook.explorers import common


def test_what_a_page_is_filled_with_is_not_filled_again(tmp_path):
    values = {"NAME": "DRAWN BODY OTHER </script>", "OTHER": [1, 2]}
    body = "<div>DRAWN</div><script>NAME; OTHER</script>"
    page = common.write_page(tmp_path / "page.html", "T", "", body, go.Figure(), values).read_text(encoding="utf-8")
    assert '"DRAWN BODY OTHER \\u003c/script>"; [1,2]</script>' in page
    assert page.count("plotly-graph-div") == 1
