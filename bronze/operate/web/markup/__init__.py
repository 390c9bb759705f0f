"""What pages are written with: tags that escape, charts, Markdown, the frame around a page."""
