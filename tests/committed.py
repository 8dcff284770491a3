"""Made-up records of comparisons, as those below reports/."""

from ilm_plugins.frameworks.run_record import write


def run(folder, seed, metrics, test="", **options):
    found = {"seed": seed, "run": 10, "planned": 10, "metrics": {"": metrics}, **options}
    write(folder / f"seed{seed}" / test / "record.json", found)
