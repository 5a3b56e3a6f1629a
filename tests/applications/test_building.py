"""What all builders share: variants with a true signature."""

import inspect
import pickle

import keras
import pytest

from kvision import applications as A
from kvision.applications.building import variant_of


def builders(kind):
    """The public builders of a subpackage of `kvision.applications`, by name."""
    public = {name: value for name, value in vars(A).items() if inspect.isfunction(value) and name[0].isupper()}
    return {name: value for name, value in public.items() if f".{kind}." in value.__module__}


BUILDERS = builders("classification")
DOCUMENTED = BUILDERS | builders("segmentation")
COMMON = ("include_top", "weights", "input_shape", "classes", "classifier_activation", "features", "name")


@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_shows_its_true_signature(name):
    builder = BUILDERS[name]
    arguments = inspect.signature(builder).parameters
    assert not [p for p in arguments.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert set(COMMON) <= set(arguments)
    assert [p.name for p in arguments.values() if p.kind is not p.KEYWORD_ONLY] in ([], ["variant"], ["n", "m", "k"])
    assert (builder.__name__, builder.__qualname__) == (name, name)
    assert pickle.loads(pickle.dumps(builder)) is builder


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_argument_is_documented(name):
    documentation = inspect.getdoc(DOCUMENTED[name])
    assert documentation.index("Args:") < documentation.index("Returns:") < documentation.index("Raises:")
    lines = [line.strip().split(":")[0] for line in documentation.split("Returns:")[0].splitlines() if ":" in line]
    documented = {argument for line in lines for argument in line.split(", ")}
    assert set(inspect.signature(DOCUMENTED[name]).parameters) <= documented


def test_a_variant_is_its_familys_row():
    with keras.StatelessScope(initialize_variables=False):
        model, same = A.ResNet18(classes=7), A.ResNet("18", classes=7)
    assert [w.path for w in model.weights] == [w.path for w in same.weights]
    assert (model.name, model.output_shape) == ("resnet_18", (None, 7))


def test_a_variants_own_defaults_are_shown_used_and_overridden():
    arguments = inspect.signature(A.ResNet20).parameters
    assert (arguments["input_shape"].default, arguments["classes"].default) == ((32, 32, 3), 10)
    assert "variant" not in arguments
    with keras.StatelessScope(initialize_variables=False):
        assert A.ResNet20().input_shape == (None, 32, 32, 3)
        assert A.ResNet20(input_shape=(40, 36, 3), classes=4).output_shape == (None, 4)


def test_a_variants_documentation_is_its_summary_and_the_familys_arguments():
    documentation = inspect.getdoc(A.ResNet50)
    assert documentation.startswith("ResNet-50: 25,557,032 parameters.\n\nArgs:\n    include_top: ")
    assert "variant:" not in documentation
    assert ">>>" not in documentation


def test_unknown_arguments_of_a_variant_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'norms'"):
        A.ResNet50(norms="batch")
    with pytest.raises(TypeError, match=r"^ResNet50\(\) takes 0 positional arguments but 1 was given"):
        A.ResNet50("imagenet")


def family(variant, *, size=1, depth=None):
    """Build it.

    Args:
        variant: One of
            the rows.
        size: A number.
        depth: Another.

    Returns:
        Something.

    ```python
    family("a")
    ```
    """
    return variant, size, depth


def test_variants_of_any_family():
    build = variant_of(family, "a", "FamilyA", "The row a.", size=3)
    assert build(depth=2) == ("a", 3, 2)
    assert build(size=4) == ("a", 4, None)
    assert build.__module__ == __name__
    assert build.__doc__ == (
        "The row a.\n\nArgs:\n    size: A number.\n    depth: Another.\n\nReturns:\n    Something."
    )
    assert str(inspect.signature(build)) == "(*, size=3, depth=None)"
