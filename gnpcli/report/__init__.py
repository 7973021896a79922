"""What runs leave behind, made visible: curves with seed bands, and self-contained HTML pages.

`history` reads run folders, `metrics` says which curves there are, `bands` averages over seeds,
`charts` draws them with matplotlib, `page` is the HTML around them, and `run_page` is the page of
one run.
"""
