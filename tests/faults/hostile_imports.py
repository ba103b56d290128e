"""What every command needs, imported once for all children of tests.faults.hostile."""

import perdure.backbones.causal
import perdure.backbones.encoder
import perdure.cli
import perdure.commands.export
import perdure.commands.grow
import perdure.commands.learn
import perdure.commands.merge
import perdure.diagnostics.folders
import perdure.report.page
import perdure.report.sweeps  # noqa: F401
