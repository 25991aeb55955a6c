"""What is fast is shown here: ratios against a named peer in the same run, never in a timed test.

``python -m bench`` runs everything and prints the table of docs/performance.md;
``python -m bench frames http`` some of it; ``--quick`` in a minute, for finding mistakes.
"""
