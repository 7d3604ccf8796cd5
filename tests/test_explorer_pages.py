"""The page that every explorer writes."""

import plotly.graph_objects as go

from wsnotebook.explorers import common


def test_what_a_page_is_filled_with_is_not_filled_again(tmp_path):
    values, parts = {"NAME": "@DRAWN@ @BODY@ @OTHER@ </script>", "OTHER": [1, 2]}, {"PART": "<b>OTHER @OTHER@</b>"}
    body = "<div>@DRAWN@</div>@PART@<script>@NAME@; @OTHER@</script>"
    path = common.write_page(tmp_path / "page.html", "T", "", body, go.Figure(), values, parts)
    page = path.read_text(encoding="utf-8")
    assert '<b>OTHER @OTHER@</b><script>"@DRAWN@ @BODY@ @OTHER@ \\u003c/script>"; [1,2]</script>' in page
    assert page.count("plotly-graph-div") == 1
