"""What runs leave behind, made visible: curves with seed bands, and self-contained HTML pages.

`gnpcli.runs.history` reads run folders, `metrics` says which curves there are, and `bands` averages
over seeds. `curves` draws a panel with matplotlib, `style` is its look, `svg` makes it part of a
page, and `charts` puts panels together. `page` is the HTML around them, and `run_page` is the page
of one run.

Matplotlib obeys a ``matplotlibrc`` of the current folder, which may be a folder from elsewhere. So
it is imported from here, where there is none.
"""

from contextlib import chdir
from pathlib import Path

with chdir(Path(__file__).parent):
    import matplotlib  # noqa: F401 - its settings are read once
