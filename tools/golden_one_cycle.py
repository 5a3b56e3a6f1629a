"""Golden numbers of torch's `OneCycleLR`, for the tests that run without torch.

.venv-parity/bin/python tools/golden_one_cycle.py
"""

import json
import pathlib

import torch

OUTPUT = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "one_cycle.json"
CASES = [
    {"max_lr": 0.1, "total_steps": 20},
    {"max_lr": 0.1, "total_steps": 20, "anneal_strategy": "linear"},
    {"max_lr": 0.1, "total_steps": 20, "three_phase": True},
    {"max_lr": 2.0, "total_steps": 33, "anneal_strategy": "linear", "three_phase": True, "pct_start": 0.45},
    {"max_lr": 1e-3, "total_steps": 17, "pct_start": 0.0},
    {"max_lr": 1e-3, "total_steps": 17, "pct_start": 1.0},
    {"max_lr": 1e-3, "total_steps": 17, "pct_start": 0.05},
    {"max_lr": 0.4, "total_steps": 31, "div_factor": 1e4, "final_div_factor": 10.0},
]


def torch_rates(options):
    """Rates of the steps 0 … total_steps - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, cycle_momentum=False, **options)
    rates = []
    for _ in range(options["total_steps"]):
        rates += scheduler.get_last_lr()
        optimizer.step()
        if len(rates) < options["total_steps"]:
            scheduler.step()
    return rates


def main():
    rows = ",\n".join("    " + json.dumps({"options": options, "rates": torch_rates(options)}) for options in CASES)
    made_by, version = json.dumps("tools/golden_one_cycle.py"), json.dumps(torch.__version__)
    OUTPUT.write_text(f'{{\n  "made_by": {made_by},\n  "torch": {version},\n  "cases": [\n{rows}\n  ]\n}}\n')
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
