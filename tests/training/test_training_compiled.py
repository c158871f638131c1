"""A toolchain that cannot compile costs a line, and not the training."""

import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.nn.transformer import Trunk
from harness.study.fit import _trained
from harness.training.loop import train
from tests.kit.toys import job_of, one_thread, tiny_problem  # noqa: F401


def _method() -> MDLM:
    torch.manual_seed(0)
    return MDLM(tiny_problem(), MDLMOptions())


def test_training_goes_on_uncompiled_with_the_same_numbers(tmp_path, capsys):
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        raise FileNotFoundError("no C++ compiler: /bin/false")

    plain, method = _method(), _method()
    train(job_of(plain, tmp_path / "plain"))
    for module in method.modules():
        if isinstance(module, Trunk):
            module.compile(dynamic=False, backend=broken)
    _trained(job_of(method, tmp_path / "compiled"), "mdlm/seed0")
    said = capsys.readouterr().err
    assert said == (
        "\nmdlm/seed0: torch.compile failed (FileNotFoundError: no C++ compiler: /bin/false); training runs uncompiled\n"
    )
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in plain.state_dict().items())
