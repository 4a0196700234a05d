"""Capture: LangChain's callbacks become traces, without the host ever waiting or failing because of us.

``handler`` hears the events, ``run_tree`` keeps open runs, ``assembly`` and ``answer`` make a trace of a
finished one, ``recorder`` hands it over, ``writer`` stores it, ``spool`` keeps it while PostgreSQL is away.
"""
