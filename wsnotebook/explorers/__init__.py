"""Explorers: one interactive picture a file. Each also gives `.figure()` (static) and `.to_html(path)` (no kernel)."""

from wsnotebook.explorers import grammars

grammars.postpone()
