"""The API reference: for GitHub a line for each public name, for the site autodoc's directives."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import ilm_plugins
from ilm_plugins.experiments.reports.table import markdown

from .docstrings import first_sentence

#: Section of docs/api.md -> module -> public name -> its members in the reference, "*" for all.
SECTIONS: dict[str, dict[str, dict[str, str]]] = {
    "package": {
        "ilm_plugins": {
            "register": "",
            "use_backend": "",
            "get_config_file": "",
            "freeze": "",
            "set_radius": "",
            "parameter_groups": "",
            "compare": "",
            "NORMS": "",
            "ILMGroupNorm": "rescaling",
            "ILMInstanceNorm": "",
            "ILMLayerNorm": "",
            "AssocNorm": "",
            "ExemplarNorm": "ratios",
            "SwitchNorm": "ratios",
            "SparseSwitchNorm": "ratios, set_radius",
            "AttentiveNorm": "",
        },
    },
    "tools": {
        "ilm_plugins.surgery": {
            "convert": "",
            "revert": "",
            "convert_state": "",
            "revert_state": "",
            "fit_state": "",
            "recalibrate": "",
            "fuse_activations": "",
            "Report": "*",
        },
        "ilm_plugins.checkpoints": {"read": "", "write": "", "check_fits": ""},
        "ilm_plugins.errors": {"UserError": "*", "OptionError": "*", "CheckpointError": "*"},
        "ilm_plugins.experiments.analysis.complexity": {"parameters": "", "flops": ""},
        "ilm_plugins.experiments.analysis.collect": {
            "collect_ratios": "",
            "collect_rescaling": "",
            "Ratios": "*",
            "Rescaling": "*",
        },
    },
    "layers": {
        "ilm_plugins.layers.base": {"AdaptiveNorm": "rescale, rescale_tensors, normalize, forward"},
        "ilm_plugins.layers.autoencoder": {"AutoencoderNorm": ""},
        "ilm_plugins.layers.mixture": {"MixtureNorm": ""},
        "ilm_plugins.layers.sparse": {"sparsestmax": ""},
        "ilm_plugins.frameworks.radius": {"RadiusSchedule": "set"},
        "ilm_plugins.experiments.compare.function_runs": {"Comparison": "table, values"},
    },
    "primitive": {
        "ilm_plugins.ops": {
            "adaptive_norm": "",
            "Activation": "*",
            "moments": "",
            "coarsen": "",
            "over_batch": "",
            "Autoencoder": "*",
            "Exemplar": "*",
            "Switch": "*",
            "SparseSwitch": "*",
            "Attentive": "*",
        },
        "ilm_plugins.experiments.pix2pix.translation_networks": {
            "UNetGenerator": "",
            "PatchDiscriminator": "",
            "Pix2Pix": "translate, preprocess_images",
        },
    },
}
#: Name of a variable -> its type, its module and a description.
VARIABLES = {
    "NORMS": (
        "dict[str, type]",
        "ilm_plugins.layers.registry",
        "Registry key -> layer, the same in every framework.",
    )
}
#: A part of docs/api.md that a section's table fills.
PART = re.compile(r"<!-- names: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def table(section: str) -> list[str]:
    """Return a table of a section's public names: their sources and the docstrings' first lines."""
    rows = []
    for module, names in SECTIONS[section].items():
        rows.append(("", f"**`{module}`**: {summary(import_module(module))}"))
        for name, members in names.items():
            found = getattr(import_module(module), name)
            rows.append((f"[`{name}`](../{source(name, found)})", summary(found, name)))
            for member in filter(None, members.strip("*").split(", ")):
                rows.append((f"`.{member}`", summary(getattr(found, member))))
    return markdown(("name", "what it is"), rows)


def source(name: str, found: object) -> str:
    """Return the path of a name's file, below the folder of the package."""
    module = VARIABLES[name][1] if name in VARIABLES else found.__module__
    path = inspect.getsourcefile(import_module(module))
    assert path is not None
    return Path(path).relative_to(Path(ilm_plugins.__file__).parents[1]).as_posix()


def summary(found: object, name: str = "") -> str:
    text = VARIABLES[name][2] if name in VARIABLES else inspect.getdoc(found)
    return first_sentence(text or "")


def on_site(page: str) -> str:
    """Return docs/api.md with autodoc's directives in place of the tables."""
    return PART.sub(lambda part: directives(part[1]), page)


def directives(section: str) -> str:
    lines = ["```{eval-rst}"]
    for module, names in SECTIONS[section].items():
        lines += [f".. automodule:: {module}", ""]
        for name, members in names.items():
            if name in VARIABLES:
                kind, _, text = VARIABLES[name]
                lines += [f".. py:data:: {name}", f"   :type: {kind}", "", f"   {text}", ""]
            elif inspect.isclass(getattr(import_module(module), name)):
                lines.append(f".. autoclass:: {name}")
                if members:
                    lines.append(f"   :members: {members.strip('*')}".rstrip())
            else:
                lines.append(f".. autofunction:: {name}")
    return "\n".join([*lines, "```"])
