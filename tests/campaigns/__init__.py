"""Campaigns: what many hostile or unlucky moments do to the program, as programs.

A campaign has a list of cases. Each case runs real commands in a folder of its own, and either
holds, with a word on how, or fails, with a text on what was seen. ``python -m tests.campaigns``
lists the campaigns::

    python -m tests.campaigns random-kills --size full     # as many as the documentation tells of
    python -m tests.campaigns random-kills --size 20       # that many
    python -m tests.campaigns damage-resume --only 'flip'  # the cases whose names hold a text
    pytest -m slow tests/campaigns --campaign-size full    # all, as tests

A smaller size takes cases from the whole range, the same ones for the same ``--seed``. The folder
of a case that failed is kept with ``--keep DIR``. ``--json FILE`` writes what docs/results.md
tells. The limits, which are measured and not passed, are ``python -m tests.campaigns limits``.

- `faults`: kills a process at one file-system event, or lets that event fail. It preloads a small
  C library. So those campaigns need Linux and a C compiler, and are skipped elsewhere.
- `runs`: the run that is disturbed, and what makes two runs the same.
- `kills`, `damage`, `fuzz`: the campaigns. `odd` makes the inputs of `fuzz`.
- `limits`: time and memory at sizes that no test reaches.
"""
