"""Made-up results, as those in reproduction/records/."""

from reproduction.pages.results import OWN_TEST, Results, Run


def run(results: Results, comparison, norm, seed, values, test=OWN_TEST, **options) -> Results:
    """Add a run's values by a test: metric -> value."""
    runs = results.setdefault(comparison, {}).setdefault(norm, [])
    found = next((run for run in runs if run.seed == seed and not options), None)
    if found is None:
        runs.append(found := Run(seed, **options))
    found.values[test] |= values
    return results
