"""What a builder knows of weights from elsewhere: where they are published, and how others name them."""

import collections.abc
import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of an architecture's `WEIGHTS`: where weights lie that others published, and what they reach.

    Args:
        repository, file: On the Hugging Face Hub; or an address (`"https://…"`) and a file below it, whose name ends in
            `-` and the first digits of its sha256.
        source: Whose names the file carries: `"torchvision"`, `"timm"`, `"transformers"`, `"effdet"`, `"detr"` or
            `"torchfcn"`.
        licence: Of the weights.
        accuracy: Published, in percent: top-1 on the 50,000 validation images of ImageNet; of a detector, the AP of
            its boxes on COCO's val2017; of semantic segmentation, the mean IoU.
        resizing: What the images go through before `preprocessing`, in words.
        mask_ap: The AP of its masks on COCO's val2017, in percent, if it has masks.
        epsilon: Of the batch normalisations in use with these weights; None: the model's own.
        preprocessing: What RGB images of 0…255 go through with these weights, a serializable object such as
            `kvision.network.Preprocessing`; None: the family's own.
        adapt: What the state dict goes through before it is compared, a serializable object; None: nothing.
    """

    repository: str
    file: str
    source: str
    licence: str
    accuracy: float
    resizing: str
    mask_ap: float | None = None
    epsilon: float | None = None
    preprocessing: collections.abc.Callable | None = None
    adapt: collections.abc.Callable | None = None

    def get_config(self):
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        functions = {name: keras.saving.serialize_keras_object(config[name]) for name in ("preprocessing", "adapt")}
        return config | functions

    @classmethod
    def from_config(cls, config):
        functions = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("preprocessing", "adapt")}
        return cls(**config | functions)


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class WeightSources:
    """What a builder knows of weights from elsewhere; a `kvision.network.Network` keeps it through save and load.

    Args:
        renames: `{source: [(pattern, replacement), …]}`, applied to the keys that follow from our paths.
        published: `{name: Published}`.
        older_names: `{source: [(pattern, replacement), …]}`, from the names that older files carry to today's, applied
            to the keys of a file.
        top: Names of layers, or their beginnings up to a dot, that a network for other classes, without its classifier,
            or with fewer features has otherwise or not at all: they stay fresh where a file does not fit them, and may
            be missing on either side.
    """

    renames: dict = dataclasses.field(default_factory=dict)
    published: dict = dataclasses.field(default_factory=dict)
    older_names: dict = dataclasses.field(default_factory=dict)
    top: tuple = ()

    def __post_init__(self):
        for name in ("renames", "older_names"):
            tables = {source: tuple(map(tuple, rules)) for source, rules in getattr(self, name).items()}
            object.__setattr__(self, name, tables)
        object.__setattr__(self, "top", tuple(self.top))

    def get_config(self):
        rules = [rule for table in (self.renames, self.older_names) for rules in table.values() for rule in rules]
        if computed := [pattern for pattern, replacement in rules if not isinstance(replacement, str)]:
            raise ValueError(
                f"The names of foreign weights cannot be saved with the model: a function computes the rule for "
                f"{computed[0]!r}. Write it as rules whose replacement is text."
            )
        return {
            "renames": self.renames,
            "published": {name: row.get_config() for name, row in self.published.items()},
            "older_names": self.older_names,
            "top": list(self.top),
        }

    @classmethod
    def from_config(cls, config):
        published = {name: Published.from_config(row) for name, row in config["published"].items()}
        return cls(config["renames"], published, config["older_names"], config["top"])

    def is_top(self, layer_name):
        return any(f"{layer_name}.".startswith(f"{name}.") for name in self.top)


def remember(model, renames=None, published=None, older_names=None, top=()):
    """Tell a model what its builder knows of weights from elsewhere; arguments as those of `WeightSources`."""
    model.weight_sources = WeightSources(renames or {}, published or {}, older_names or {}, top)


def published_names(model):
    """Names of the published weights that a model as built can load."""
    return tuple(sources_of(model).published)


def sources_of(model):
    return getattr(model, "weight_sources", None) or WeightSources()
