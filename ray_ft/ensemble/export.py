"""An ensemble as one file that needs neither this package nor the network's code: `torch.export` or ONNX."""

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ray_ft.ensemble import Ensemble, apply_stacked
from ray_ft.errors import EnsembleError
from ray_ft.files.writing import replace_file
from ray_ft.split.silence import silence
from ray_ft.statistics.intervals import count_labels

N_EXAMPLES = 3
TOLERATED = 0.01  # of the ensemble's score


class Members(nn.Module):
    """Inputs as the run's data has them, to the response of each member."""

    def __init__(self, ensemble: Ensemble, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.networks, self.card, self.names = ensemble.networks, ensemble.card, {}
        for strategy, own in states.items():
            self.names[strategy] = {name: f"state_{i}_{strategy}" for i, name in enumerate(own)}
            for name, tensor in own.items():
                self.register_buffer(self.names[strategy][name], tensor)
        self.domain, self.objective = ensemble.domain, ensemble.objective
        self.views = self.domain.list_views(self.card.symmetry if self.card.symmetric else ())

    def forward(self, inputs: Float[Tensor, "sample *input"]) -> Float[Tensor, "member sample *response"]:
        encoded, n_views = self.domain.encode_inputs(inputs), len(self.views)
        every = self.run(torch.cat([view.move_inputs(encoded) for view in self.views]))  # the members stand there once
        predicted = list(every.unflatten(1, (n_views, -1)).unbind(1))  # type: ignore[no-untyped-call]
        if not self.card.classes:
            predicted = [view.restore_targets(own) for view, own in zip(self.views, predicted, strict=True)]
        return torch.stack(predicted).mean(0)

    def run(self, inputs: Tensor) -> Tensor:
        features = self.networks[self.card.strategies[0]].run_backbone(inputs)
        members = []
        for strategy, names in self.names.items():
            stacked = {name: self.get_buffer(own) for name, own in names.items()}
            members.append(apply_stacked(self.networks[strategy], stacked, features))
        return self.objective.respond(torch.cat(members))


class EnsembleModule(nn.Module):
    """What the objective exports of the numbers of `Ensemble.predict`, by the method and level of the card."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        card = ensemble.card
        self.members = Members(ensemble, ensemble.states)
        self.shape = (len(card.strategies), card.n_repeats, card.n_folds, card.n_seeds)
        self.alpha, self.answers = 1 - card.level, ensemble.objective.answers
        self.weights = nn.Buffer(torch.tensor(ensemble.weights))
        self.fold_of = nn.Buffer(torch.tensor(ensemble.calibration.fold_of))
        self.residuals = nn.Buffer(torch.tensor(ensemble.residuals))
        self.n_labels = count_labels(ensemble.residuals)

    def forward(self, inputs: Float[Tensor, "sample *input"]) -> tuple[Tensor, ...]:
        every: Tensor = self.members(inputs)
        members = every.view(*self.shape, *every.shape[1:])
        return self.answers.export(members, self.weights, self.residuals, self.fold_of, self.alpha, self.n_labels)


class SoupModule(nn.Module):
    """One network whose weights are the average of the members'."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.members = Members(ensemble, {ensemble.card.strategies[0]: average_weights(ensemble)})

    def forward(self, inputs: Float[Tensor, "sample *input"]) -> Float[Tensor, "sample *response"]:
        every: Tensor = self.members(inputs)
        return every[0]


def average_weights(ensemble: Ensemble) -> dict[str, Tensor]:
    """Average the weights of all members, as the method in use weighs them, to a stack of one member.

    The members must be of one strategy, as others do not train the same tensors.
    """
    if len(ensemble.card.strategies) > 1:
        raise EnsembleError(
            "weights can be averaged over members of one strategy, got an ensemble of "
            f"{', '.join(ensemble.card.strategies)}; rebuild it with: ray-ft ensemble RUN --strategies NAME"
        )
    weights = torch.tensor(ensemble.weights.ravel()).double()
    weights /= weights.sum()
    (own,) = ensemble.states.values()
    return {name: average_stacked(weights, each.cpu())[None] for name, each in own.items()}


def average_stacked(weights: Float[Tensor, " member"], stacked: Shaped[Tensor, "member ..."]) -> Shaped[Tensor, "..."]:
    """Average tensors, complex ones too, in double precision."""
    kind = torch.promote_types(torch.float64, stacked.dtype)
    average: Tensor = torch.tensordot(weights.to(kind), stacked.to(kind), 1)
    return average.to(stacked.dtype)


def check_soup(ensemble: Ensemble) -> None:
    """Refuse averaged weights that are worse than averaged predictions, as far as blind members can say.

    A soup of one fold's seeds has a blind score; that of all members has none, as each sample trained some of them.
    """
    card = ensemble.card
    if card.soup_score is None or card.soup_score > (1 + TOLERATED) * card.score:
        seen = "no score, with one seed" if card.soup_score is None else f"{card.soup_score:.4g} for {card.score:.4g}"
        raise EnsembleError(
            f"a soup must score within {TOLERATED:.0%} of the ensemble, got {seen}; export without --soup, or with "
            "--allow-worse (--force said so before; it now replaces a file that exists)"
        )


def export_ensemble(ensemble: Ensemble, path: Path, soup: bool = False) -> Path:
    """Write an ensemble, or one network of its members' average weights, to one file with the card inside.

    The path ends in `.pt2`, or in `.onnx` where the package `onnxscript` is installed.

    Raises:
        EnsembleError: The suffix is another, a package is missing, the members cannot be averaged, or the network
            cannot be exported.
    """
    writers: dict[str, Callable[[nn.Module, Tensor, Ensemble, Path], None]] = {".pt2": write_pt2, ".onnx": write_onnx}
    if path.suffix not in writers:
        raise EnsembleError(f"an export ends in {', '.join(writers)}, .mlflow or .db, got {path}")
    if ensemble.card.split:
        raise EnsembleError(f"an ensemble must be tensor operations to be exported, but {ensemble.card.split}")
    module = SoupModule(ensemble) if soup else EnsembleModule(ensemble)
    example = torch.randint(0, 2, (N_EXAMPLES, *ensemble.card.input_shape), generator=torch.Generator().manual_seed(0))
    try:
        with silence(), contextlib.redirect_stdout(io.StringIO()), replace_file(path) as partial, torch.no_grad():
            partial.touch()  # of a path that cannot be written, torch raises what it raises for a bug, too
            writers[path.suffix](module.eval(), example.float(), ensemble, partial)
    except ImportError as error:
        raise EnsembleError(
            f"ONNX needs packages that are not installed: {error.name}; install them with: pip install 'ray-ft[onnx]'"
        ) from error
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise EnsembleError(f"the operations of the network must be ones that ONNX has, but: {reason}") from error
    except OSError as error:
        raise EnsembleError(f"an export must be writable, got {path}: {error.strerror}") from error
    return path


def write_pt2(module: nn.Module, example: Tensor, ensemble: Ensemble, path: Path) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("sample")},), strict=False)
    content = io.BytesIO()  # of a disk that is full, torch says what it says for a bug
    torch.export.save(program, content, extra_files={"card.json": ensemble.card.model_dump_json()})
    path.write_bytes(content.getvalue())


def write_onnx(module: nn.Module, example: Tensor, ensemble: Ensemble, path: Path) -> None:
    import onnxscript  # noqa: F401  # so that what is missing is named

    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("sample")},), input_names=["inputs"],
        verbose=False, optimize=True,
    )  # fmt: skip
    assert program is not None
    graph, names = program.model.graph, ensemble.exported
    for value in (value for node in graph for value in node.outputs):
        if value.name in names:
            value.name = f"inner_{value.name}"  # the exporter names values after operations, such as `mean`
    for value, name in zip(graph.outputs, names, strict=False):  # of a soup, the mean alone
        value.name = name
    program.model.metadata_props["card"] = ensemble.card.model_dump_json()
    program.save(str(path))
