"""Panels: what a notebook shows of a run, and the hands that it gives to people.

How it flows, for every panel:

    the run's loop                                              the browser
    Watch (what the readings say) ─┐
    Rates, windows, log, snapshot ─┴─ Panel.show() ── one message a tick ──▶ js/: draws
    Run.inject, .pause, .stop … ◀── Panel.hear() ◀── any thread ◀── {"do": "inject", …}

* Everything of a panel happens on the loop of the run that it shows. A message from the browser
  may come on any thread, with another loop: it is handed over, and nothing else is done there.
* A tick sends the whole state, so that a message that is dropped, or a page that is loaded again,
  loses nothing: `facts` (small JSON), `lines` and `cells` (arrays of float32 and bytes).
* A control calls a method of the run. What went wrong is said in the panel, beside it.
* The browser's half is plain ES modules in `js/`, joined as they are (see `assets`).
"""
