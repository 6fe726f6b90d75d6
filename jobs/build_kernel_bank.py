"""Build a kernel bank, or look at one.

    python jobs/build_kernel_bank.py --output banks/default|s3://bucket/bank [--gaussian 100000 --motion 100000]
    python jobs/build_kernel_bank.py --output banks/dan --preset dan1-x4 --gaussian 30000
    python jobs/build_kernel_bank.py --output banks/default --verify | --info | --check

Run again, it finishes an interrupted bank and leaves a complete one. Pictures also go into the run of MLFLOW_RUN_ID.
"""

from __future__ import annotations

from pydantic import Field

from kernels_bank.spec import PRESETS, KernelBankSpec, preset_spec
from pipeline.cli import Command, run


class BuildKernelBank(Command, KernelBankSpec):
    """Build a kernel bank (the default action), or verify, describe or plan one."""

    model_config = Command.model_config

    output: str = Field(description="where the bank is: a path, file:// or s3://bucket/prefix")
    preset: str | None = Field(None, description=f"settings of the literature: {', '.join(PRESETS)}; flags override")
    config: str | None = Field(None, description="YAML file of settings")
    verify: bool = Field(False, description="hash everything again and compare with the manifest")
    info: bool = Field(False, description="print what the bank holds")
    check: bool = Field(False, description="say what would be built; start nothing")

    def _refuse_misfits(self) -> None:
        # The other settings have to fit those of a preset: `spec` checks them together.
        if not self.preset:
            super()._refuse_misfits()

    def spec(self) -> KernelBankSpec:
        """Return the requested spec: explicit settings override the preset, which overrides the defaults."""
        explicit = {n: getattr(self, n) for n in self.model_fields_set & KernelBankSpec.model_fields.keys()}
        return preset_spec(self.preset, explicit) if self.preset else KernelBankSpec(**explicit)


def job(command: BuildKernelBank) -> None:
    """Run the requested action and print the result."""
    from kernels_bank import report

    if command.verify:
        print(report.verified(command.output))
    elif command.info:
        print(report.described(command.output))
    elif command.check:
        print(report.planned(command.spec(), command.output))
    else:
        from kernels_bank.generate import build_bank
        from pipeline.tracking.bank import active_run, log_bank

        tracked = active_run(command.output)
        build_bank(command.spec(), command.output)
        if tracked:
            log_bank(tracked, command.output)
        print(report.described(command.output))


if __name__ == "__main__":
    run(BuildKernelBank, job)
