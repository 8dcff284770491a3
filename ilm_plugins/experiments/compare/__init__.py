"""The command ``compare``: train one model with several norms, and report differences.

A comparison goes through these files, from its plan to its report:

- plan: ``comparison_plan``, and what is trained, ``config_source`` (with ``compared_config``,
  ``compared_models`` and ``starts``), ``command_source`` (with ``script_metric``) or
  ``function_source``
- runs: ``runs``, their files in ``run_folders``, their processes in ``tasks``, ``executors`` and
  ``slurm_jobs``
- results: numbers in ``results``, words in ``answers``
- report: ``comparison_report`` for compare.md and .csv, ``comparison_plot`` for .png, and
  ``comparison_page`` for .html, with ``curves`` and ``predictions``

``comparison`` leads through all of it, and ``function_api`` is its call in Python.
"""
