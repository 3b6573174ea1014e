"""From a subnet of a supernet to an ordinary, smaller Hugging Face model, in memory and on disk."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from bootstrapnas import modeling_subnet
from bootstrapnas.artefacts import write_json, write_text, writing
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet, subnet_from_json, subnet_to_json
from bootstrapnas.errors import UserError
from bootstrapnas.families import family_of
from bootstrapnas.slicing import select

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MODELING_FILE = "modeling_subnet.py"
SUBNET_FILE = "subnet.json"
_ADAPTER_CONFIG = "adapter_config.json"
_EXPORTED = {"openvino_model.xml": "an OpenVINO IR", "model.onnx": "an ONNX model"}
MERGE = "lonas extract --merge True makes one model of both"


def extract(model: PreTrainedModel, blueprint: Blueprint, subnet: Subnet) -> PreTrainedModel:
    """Return a copy of `subnet` as a model of its own, on the same device, in eval mode; what is frozen stays frozen.

    Its config is a copy that describes it: by the config's own attributes where they can (then the class is the
    original one, and the layers that are left are numbered anew), else by ``config.subnet``, which
    `bootstrapnas.modeling_subnet` turns into shapes.

    Parameters
    ----------
    model
        The full-size model, elastic or not.
    blueprint
        Its blueprint.
    subnet
        What to extract.

    Raises
    ------
    UserError
        If the model cannot take a size of `subnet`.
    """
    blueprint.check(subnet)
    config = subnet_config(blueprint, subnet)
    cls = subnet_class(_plain_class(model, blueprint), config)
    with torch.device("meta"):
        small = cls(config)
    renumbered = cls is _plain_class(model, blueprint)

    def origin(name: str) -> str:
        return _origin(blueprint, subnet, name) if renumbered else name

    source = dict(model.named_parameters(remove_duplicate=False))
    tensors = {
        name: select(blueprint, origin(name), source[origin(name)].detach(), subnet).clone()
        for name, _ in small.named_parameters(remove_duplicate=False)
        if origin(name) in blueprint.parameters
    }
    assert len(tensors) == sum(blueprint.exists(parameter, subnet) for parameter in blueprint.parameters.values())
    buffers = dict(model.named_buffers())
    _fill(small, tensors, {name: buffers[origin(name)] for name, _ in small.named_buffers()})
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(source[origin(name)].requires_grad)
    if small.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.eval()


def extracted_name(small: PreTrainedModel, blueprint: Blueprint, subnet: Subnet, name: str) -> str:
    """Return what a module or parameter of the full model is called in `small`, which is `subnet` extracted.

    `name` must lie in what the subnet keeps.
    """
    if small.config.to_dict().get("subnet") is not None:
        return name
    return _renumbered(blueprint, name, blueprint.kept_layers(subnet).index)


def subnet_config(blueprint: Blueprint, subnet: Subnet) -> PreTrainedConfig:
    """Return a copy of the model's config that describes `subnet`."""
    config = copy.deepcopy(blueprint.config)
    plain = _expressed(blueprint, subnet)
    if plain is not None:
        return plain
    config.subnet = layout(blueprint, subnet)
    if blueprint.family.layer_types:
        setattr(config, blueprint.family.layer_types, list(blueprint.layer_kinds(subnet)))
    return config


def layout(blueprint: Blueprint, subnet: Subnet) -> dict[str, Any]:
    """Return what `bootstrapnas.modeling_subnet.shrink` needs to resize a full-size model to `subnet`.

    ``sizes`` is for people (units per layer); ``shapes`` names every smaller parameter; ``stand_ins`` what is skipped;
    ``attributes`` what the code of modules reads, where it differs from the full model.
    """
    complete = blueprint.complete(subnet)
    stand_ins = {
        blueprint.layer_path(layer, module): stand_in
        for layer in range(blueprint.num_layers)
        for block in blueprint.family.blocks
        if complete[Key(block.name, layer)] == 0
        for module, stand_in in block.stand_ins.items()
    }
    shapes = {
        name: list(blueprint.shape(name, subnet))
        for name, parameter in blueprint.uses.items()
        if blueprint.exists(parameter, subnet) and blueprint.shape(name, subnet) != blueprint.shape(name, {})
    }
    full = blueprint.attributes({})
    attributes = {
        path: {name: value for name, value in values.items() if value != full[path][name]}
        for path, values in blueprint.attributes(subnet, blueprint.layer_kinds(subnet)).items()
        if values != full[path]
    }
    return {"sizes": subnet_to_json(complete), "shapes": shapes, "stand_ins": stand_ins, "attributes": attributes}


def subnet_class(base: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that builds a model of `config`: `base` itself, or a subclass that shrinks itself."""
    if config.to_dict().get("subnet") is None:
        return base

    def __init__(self: Any, config: Any) -> None:  # noqa: N807 - becomes the class's own
        base.__init__(self, config)
        modeling_subnet.shrink(self, config.subnet)
        self.post_init()

    return type(f"Subnet{base.__name__}", (base,), {"__init__": __init__, "__module__": __name__})


def save_subnet(model: PreTrainedModel, directory: str | Path) -> None:
    """Write a model of `extract` so that plain ``AutoModel…from_pretrained(directory)`` loads it.

    Where the config cannot express the subnet, a self-contained modelling file is written beside the weights and the
    caller must pass ``trust_remote_code=True``. Tensors are safetensors.
    """
    directory = Path(directory)
    with writing(directory):
        model.save_pretrained(directory)
    if model.config.to_dict().get("subnet") is None:
        return
    base = type(model).__mro__[1]
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["auto_map"] = {auto_class_name(base.__name__): f"{Path(MODELING_FILE).stem}.{type(model).__name__}"}
    write_text(directory / MODELING_FILE, modelling_source(base))
    write_json(directory / "config.json", config)


def head_of(architecture: str) -> str:
    """Return what class names of models with the same head end in after ``For``; "" for a bare model."""
    return "CausalLM" if architecture.endswith("LMHeadModel") else architecture.partition("For")[2]


def auto_class_name(architecture: str) -> str:
    """Return the name of the Hugging Face auto class that loads models of a class."""
    head = head_of(architecture)
    return f"AutoModelFor{head}" if head else "AutoModel"


def modelling_source(base: type[PreTrainedModel]) -> str:
    """Return the text of a modelling file that needs nothing of this project."""
    return f'''{inspect.getsource(modeling_subnet)}

from transformers import {base.__name__}  # noqa: E402


class Subnet{base.__name__}({base.__name__}):
    """{base.__name__} with the layer sizes of ``config.subnet``."""

    def __init__(self, config):
        super().__init__(config)
        shrink(self, config.subnet)
        self.post_init()
'''


def load_model(
    directory_or_id: str, auto_class: Any, dtype: torch.dtype | None = None, **settings: Any
) -> PreTrainedModel:
    """Load a model by hub id or directory; an extracted subnet is built by this package, without remote code.

    Parameters
    ----------
    directory_or_id
        As in ``from_pretrained``.
    auto_class
        A Hugging Face auto class, for example ``AutoModelForSequenceClassification``.
    dtype
        What the parameters are loaded in, without a copy in another; None for that of the checkpoint.
    settings
        Changes to the config (``num_labels``, ``id2label``, …).

    Raises
    ------
    UserError
        If there is no such model, or it is not one of `auto_class`.
    """
    from safetensors import SafetensorError

    config = load_config(directory_or_id, **settings)
    files = {path.name for path in Path(directory_or_id).glob("*")}
    for name, kind in _EXPORTED.items():
        if name in files and not any(other.startswith(("model", "pytorch_model")) for other in files - {name}):
            raise UserError(f"{directory_or_id} holds {kind}: pass the model directory that it was exported from")
    how = {"config": config, "dtype": dtype}
    try:
        if config.to_dict().get("subnet") is None:
            model = auto_class.from_pretrained(directory_or_id, trust_remote_code=False, **how)
        else:
            model = _saved_subnet_class(config, auto_class).from_pretrained(directory_or_id, **how)
    except SafetensorError as error:
        raise UserError(
            f"cannot load a model from {directory_or_id!r}: its weights are damaged ({error}); copy or make them again"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise load_failure("a model", directory_or_id, error) from error
    return model


def load_config(directory_or_id: str, **settings: Any) -> PreTrainedConfig:
    """Load a model's config by hub id or directory, with changes; `UserError` if there is none."""
    from transformers import AutoConfig

    directory = Path(directory_or_id)
    if directory.is_dir() and not (directory / "config.json").is_file():
        missing = "it has no config.json"
        below = sorted(path.parent for path in directory.glob("*/config.json"))
        adapter = adapter_beside(below[0]) if below else None
        if (directory / _ADAPTER_CONFIG).is_file():
            missing = "it holds an adapter, to be merged into its base first"
        elif adapter is not None:
            missing = f"it holds a base ({below[0].name}/) beside its adapter ({adapter.name}/); {MERGE}"
        elif below:
            missing = f"{missing}; there is one in {' and in '.join(map(str, below))}"
        raise UserError(f"{directory_or_id} is no model directory: {missing}")
    try:
        return AutoConfig.from_pretrained(directory_or_id, trust_remote_code=False, **settings)
    except (OSError, ValueError) as error:
        raise load_failure("a model", directory_or_id, error) from error


def adapter_beside(directory: str | Path) -> Path | None:
    """Return the adapter that was extracted together with the base model in a directory; None if there is none."""
    both = Path(directory).absolute().parent
    if not (both / SUBNET_FILE).is_file():
        return None
    return next((path.parent for path in sorted(both.glob(f"*/{_ADAPTER_CONFIG}"))), None)


def load_failure(what: str, directory_or_id: str, error: Exception) -> UserError:
    """Return the error that tells in a line why Hugging Face could not load something by hub id or directory."""
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if Path(directory_or_id).is_file():
        why = "it is a file, not a directory"
    elif not Path(directory_or_id).is_dir():
        why = f"there is no such directory, and as a hub id: {why}"
    return UserError(f"cannot load {what} from {directory_or_id!r}: {why}")


def _plain_class(model: PreTrainedModel, blueprint: Blueprint) -> type[PreTrainedModel]:
    """Return the class whose labels the blueprint holds: the model's own or, of a subclass, its base."""
    return next(cls for cls in type(model).__mro__ if cls.__name__ == blueprint.architecture)


def _saved_subnet_class(config: PreTrainedConfig, auto_class: Any) -> type[PreTrainedModel]:
    """Return the class that loads a saved subnet for `auto_class`: any head, but the layers' paths must be the same."""
    base = auto_class._model_mapping.get(type(config), None)
    saved = config.architectures[0]
    bare = family_of(config).bare
    if base is None or (base.__name__ == bare) != (saved == f"Subnet{bare}"):
        raise UserError(f"it holds a {saved}, which {auto_class.__name__} cannot load")
    if saved != f"Subnet{base.__name__}":  # another head, whose parameters follow the hidden size
        config.subnet = layout(Blueprint(config, base.__name__), subnet_from_json(config.subnet["sizes"]))
    return subnet_class(base, config)


def _expressed(blueprint: Blueprint, subnet: Subnet) -> PreTrainedConfig | None:
    """Return a config whose own attributes describe `subnet`, if there is one: try, then compare every shape."""
    config = copy.deepcopy(blueprint.config)
    layers = blueprint.kept_layers(subnet)
    if len(layers) != blueprint.num_layers:
        if not layers or not isinstance(blueprint.family.num_layers, str) or not blueprint.family.alike(config):
            return None
        setattr(config, blueprint.family.num_layers, len(layers))
        if blueprint.family.layer_types:
            kinds = getattr(config, blueprint.family.layer_types)
            setattr(config, blueprint.family.layer_types, [kinds[layer] for layer in layers])
    for dim in blueprint.dims.values():
        keys = [key for key in blueprint.full if key.dim == dim.name and (key.layer is None or key.layer in layers)]
        sizes = {blueprint.size(key, subnet) for key in keys}
        if len(sizes) != 1:
            return None
        size = sizes.pop()
        if isinstance(dim.source, str) and size != dim.size(config):
            setattr(config, dim.source, size)
    for name, product in blueprint.family.attributes.items():
        keys = [Key(dim, layers[0] if blueprint.dims[dim].per_layer else None) for dim in product.split()]
        size = blueprint.product(tuple(keys), subnet)
        if size != getattr(config, name, None):
            setattr(config, name, size)
    try:
        type(config).from_dict(config.to_dict())
    except (StrictDataclassError, ValueError):  # a rule of its own: LLaMA's hidden size is a multiple of its heads
        return None
    candidate = Blueprint(config, blueprint.architecture, blueprint.family)
    wanted = {
        name: blueprint.shape(name, subnet) for name, p in blueprint.parameters.items() if blueprint.exists(p, subnet)
    }
    found = {_origin(blueprint, subnet, name): candidate.shape(name, {}) for name in candidate.parameters}
    return config if wanted == found else None


def _origin(blueprint: Blueprint, subnet: Subnet, name: str) -> str:
    """Return the name in the full model of what is called `name` where the layers that are left are numbered anew."""
    return _renumbered(blueprint, name, blueprint.kept_layers(subnet).__getitem__)


def _renumbered(blueprint: Blueprint, name: str, number: Callable[[int], int]) -> str:
    """Return a name with another number of its layer, if it lies in one."""
    stack = blueprint.layer_path(0, "").removesuffix("0")
    layer, dot, rest = name.removeprefix(stack).partition(".")
    if not name.startswith(stack) or not layer.isdecimal():
        return name
    return f"{stack}{number(int(layer))}{dot}{rest}"


def _fill(small: PreTrainedModel, tensors: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    """Put real tensors in the place of the meta ones: sliced parameters, copied buffers."""
    incompatible = small.load_state_dict(tensors, strict=False, assign=True)
    assert not incompatible.unexpected_keys, incompatible
    small.tie_weights()
    for name in buffers:
        path, _, leaf = name.rpartition(".")
        module = small.get_submodule(path)
        persistent = leaf not in module._non_persistent_buffers_set
        module.register_buffer(leaf, buffers[name].detach().clone(), persistent=persistent)
    left = [name for name, parameter in small.named_parameters() if parameter.is_meta]
    assert not left, f"not filled: {left}"
