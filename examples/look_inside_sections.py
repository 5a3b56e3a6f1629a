"""What the page of `look_inside.py` holds: a function for each section, and what its pictures say and do not."""

import dataclasses
import functools

import numpy as np

from kvision import drawing
from kvision import visualize as V
from kvision.visualize import adversarial

SIDE = 126  # pixels of an image: eight fill a page


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what it is shown.

    Args:
        model: A classifier with a `preprocessing`.
        images, labels: Those that are explained, in 0…255.
        data: `(images, labels)` for what needs many.
        names: Of the classes.
        early, late, codes: Layers: one that sees edges, one that sees parts, one that holds the code of the whole.
        texture: An image whose style is taken.
        window: Pixels of the side of an occlusion.
        epsilons: Budgets of an attack, in units of 0…255.
        steps: Of what is optimized.
        lead: A sentence on the network.
    """

    model: object
    images: np.ndarray
    labels: np.ndarray
    data: tuple
    names: tuple
    early: str
    late: str
    codes: str
    texture: np.ndarray
    window: int
    epsilons: tuple
    steps: int
    lead: str

    @property
    def options(self):
        return {"preprocess": self.model.preprocessing}

    @functools.cached_property
    def found(self):
        """`{layer: patches}` of what excites the units of two layers."""
        run = functools.partial(V.maximally_activating_patches, self.model, self.data, k=9, **self.options)
        return {layer: run(layer) for layer in (self.early, self.late)}

    @functools.cached_property
    def maps(self):
        """`{technique: [b, h, w]}`, the larger the more important."""
        run = (self.model, self.images)
        integrated = V.integrated_gradients(*run, **self.options)
        return {
            "gradient": V.saliency_map(V.gradient(*run, **self.options)),
            "SmoothGrad": V.saliency_map(V.smooth_grad(*run, seed=0, **self.options)),
            "gradient times input": V.gradient(*run, times_input=True, **self.options).sum(axis=-1),
            "integrated gradients": integrated.sum(axis=-1),
            "Grad-CAM": V.grad_cam(*run, **self.options),
            "occlusion": V.occlusion(*run, window=self.window, stride=max(2, self.window // 4), **self.options),
        }


def row(images, captions=None):
    """Images side by side, enlarged alike."""
    return drawing.tiles(np.stack([drawing.to_pixels(image, 0, 255) for image in images]), SIDE, len(images), captions)


def relief(values, captions=None):
    """Signed values of each image around mid-grey."""
    limits = [np.percentile(np.abs(each), 99.5) or 1.0 for each in values]
    return row([drawing.to_pixels(v, -limit, limit) for v, limit in zip(values, limits, strict=True)], captions)


def named(case, classes):
    return [case.names[each] for each in classes]


def filters(case):
    shown = V.first_layer_filters(case.model, **case.options)
    return [("the first convolution", drawing.tiles(shown, 60))], []


def patches(case):
    figures = []
    for layer, found in case.found.items():
        alive = np.argsort(-found.values[:, -1], kind="stable")[:8]  # those that nine images excite
        side = max(40, found.patches.shape[2])
        size = " x ".join(map(str, found.patches.shape[2:4]))
        figures.append((f"{layer}: a row for each unit, {size} pixels", drawing.tiles(found.patches[alive], side)))
    return figures, []


def codes(case):
    images, labels = case.data
    embedding = V.tsne(case.model, case.data, case.codes, perplexity=min(30, len(images) // 4), **case.options)
    _, colours = np.unique(labels, return_inverse=True)
    pictures = drawing.image_grid(embedding.thumbnails, embedding.cells(), colours, thumbnail=28)
    legend = (colours, case.names) if len(case.names) <= 10 else (colours, sorted(set(named(case, labels))))
    named_points = drawing.scatter(embedding.points, labels if len(case.names) <= 10 else colours, legend[1], side=640)
    return [("every image in its cell", pictures), ("the points, by their class", named_points)], []


def attributions(case):
    figures = [("images", row(case.images, named(case, case.labels)))]
    for name, maps in case.maps.items():
        drawn = [drawing.heatmap(image, each, side=SIDE) for image, each in zip(case.images, maps, strict=True)]
        figures.append((name, drawing.grid(drawn, len(drawn))))
    return figures, []


def deletion(case):
    rng = np.random.default_rng(0)
    maps = case.maps | {"random numbers": rng.random(case.images.shape[:3])}
    rows = [("map", "insertion (high is good)", "deletion (low is good)")]
    for name, each in maps.items():
        found = V.insertion_deletion(case.model, case.images, each, **case.options)
        rows.append((name, round(float(found.insertion.mean()), 3), round(float(found.deletion.mean()), 3)))
    return [], rows


def backwards(case):
    run = functools.partial(row, captions=None)
    figures = [("images", run(case.images))]
    for technique in (V.guided_backprop, V.deconvnet):
        figures.append((technique.__name__, relief(technique(case.model, case.images, **case.options))))
    unit = int(case.found[case.late].values[:, 0].argmax())
    values = V.deconvnet(case.model, case.images, layer=case.late, unit=unit, **case.options)
    figures.append((f"deconvnet of unit {unit} of {case.late}", relief(values)))
    return figures, []


def sanity(case):
    rows = [("technique", "passes", "what was seen")]
    for technique in (V.gradient, V.guided_backprop):
        found = V.randomization_test(technique, case.model, case.images[:2], layers=None, **case.options)
        rows.append((technique.__name__, {True: "yes", False: "no", None: "unknown"}[found.ok], found.sentence))
    return [], rows


def maximized(case):
    classes = [int(each) for each in case.labels[:4]]
    found = V.activation_maximization(case.model, classes, steps=case.steps, seed=0, **case.options)
    alive = [int(unit) for unit in np.argsort(-case.found[case.late].values[:, -1], kind="stable")[:4]]
    units = V.activation_maximization(case.model, alive, case.late, steps=case.steps, seed=0, **case.options)
    return [
        ("class scores", row(found.images, named(case, classes))),
        (f"units of {case.late}, the first rows above", row(units.images)),
    ], []


def inverted(case):
    figures = [("images", row(case.images[:4]))]
    for layer in (case.early, case.late, case.codes):
        found = V.invert_features(case.model, case.images[:4], layer, steps=case.steps, seed=0, **case.options)
        figures.append((f"what {layer} still knows", row(found.images)))
    return figures, []


def dreams(case):
    steps = max(2, case.steps // 20)
    found = V.deep_dream(case.model, case.images[:3], case.late, steps=steps, seed=0, **case.options)
    return [("images", row(case.images[:3])), (case.late, row(found))], []


def style(case):
    layers = {"content_layers": [case.late], "style_layers": [case.early, case.late]}
    content = case.images[0]
    found = V.style_transfer(case.model, content, case.texture, steps=max(4, case.steps // 4), **layers, **case.options)
    return [("content, style, both", row([content, case.texture, found.image]))], []


def attacks(case):
    epsilon = case.epsilons[len(case.epsilons) // 2]
    classifier = adversarial.Classifier(case.model, **case.options)  # traced once for all attacks
    run = (classifier, case.images, epsilon)
    figures = [("images", row(case.images, named(case, case.labels)))]
    for name, found in {
        f"fast gradient, ε = {epsilon} of 255": adversarial.fast_gradient(*run, labels=case.labels),
        f"projected gradient, ε = {epsilon} of 255": adversarial.projected_gradient(*run, labels=case.labels),
        "DeepFool": adversarial.deep_fool(classifier, case.images, labels=case.labels),
    }.items():
        figures.append((name, row(found.images, named(case, found.predicted))))
    classes = [int(each) for each in case.labels[:4]]
    rubbish = adversarial.fool_from_noise(classifier, classes, steps=case.steps, seed=0)
    captions = [f"{case.names[c]} {p:.0%}" for c, p in zip(rubbish.predicted, rubbish.confidence, strict=True)]
    figures.append(("made from noise", row(rubbish.images, captions)))
    images, labels = (values[:: max(1, len(case.data[0]) // 100)] for values in case.data)
    curve = {}
    for attack in (adversarial.fast_gradient, adversarial.projected_gradient):
        found = adversarial.accuracy_under_attack(classifier, images, labels, case.epsilons, attack=attack)
        curve[attack.__name__] = (found.epsilons, found.accuracy)
    figures.append(("accuracy under attack", drawing.lines(curve, "ε in units of 0…255", "accuracy")))
    return figures, []


def segments(case):
    masks = V.segment_by_saliency(case.model, case.images, **case.options)
    drawn = [
        drawing.segmentation(image, mask.astype("int32"), side=SIDE, legend=False)
        for image, mask in zip(case.images, masks, strict=True)
    ]
    return [("GrabCut from the gradient", drawing.grid(drawn, len(drawn)))], []


def mistakes(case):
    found = V.Interpretation(case.model, case.data, class_names=case.names, **case.options)
    figures = [("highest losses", found.draw_top_losses(9)), ("calibration", found.draw_calibration())]
    if len(case.names) <= 20:
        figures.append(("confusion", found.draw_confusion()))
    return figures, [("summary",), *((line,) for line in str(found).splitlines())]


SECTIONS = (
    (
        "What the first layer looks for",
        filters,
        "The weights themselves, as images: edges and blobs, each at its own contrast.",
        "Filters above the first layer have no colour; noise here speaks for a training that is not done.",
    ),
    (
        "What units look for",
        patches,
        "The patches of the data that excite a unit most, cut to what the unit sees.",
        "The best of a data set are not all it fires at; most activations are weaker and mixed.",
    ),
    (
        "What the network holds to be alike",
        codes,
        "t-SNE of a layer's codes: neighbours on the map are neighbours in the layer.",
        "Distances between groups, their sizes and the axes mean nothing, and another perplexity gives another map.",
    ),
    (
        "Where the score comes from",
        attributions,
        "Vermilion raises the score of the predicted class, blue lowers it; of magnitudes all is vermilion.",
        "A gradient tells of small changes, occlusion of covered windows: they answer different questions, and none of "
        "them says why.",
    ),
    (
        "Are the maps right?",
        deletion,
        "The area under the probability while pixels appear, important ones first, and while they vanish.",
        "Images with holes are of a kind that the network never saw; random numbers are what to compare with.",
    ),
    (
        "Back through the layers",
        backwards,
        "Guided backprop and the deconvnet draw the edges that excite a class or a unit.",
        "They reconstruct the image more than they explain the network: see the next section.",
    ),
    (
        "Do the maps depend on what was learned?",
        sanity,
        "Layers are initialised anew from the top down; a map that stays as it was shows the image, not the network.",
        "To pass is necessary and not enough.",
    ),
    (
        "What excites most of all",
        maximized,
        "Images made so that a class score or a unit is as large as it gets, kept smooth by a prior.",
        "How natural they look is the prior's merit; without it they are noise that excites still more.",
    ),
    (
        "What a layer still knows",
        inverted,
        "Images that give a layer the same outputs: early layers keep nearly all, late ones what matters to the task.",
        "Another prior fills in other detail.",
    ),
    (
        "DeepDream",
        dreams,
        "Whatever a layer sees in an image is made stronger, at several sizes.",
        "A picture of what the training data held, and no measurement.",
    ),
    (
        "Style",
        style,
        "The content of one image in the texture of another: correlations of channels are textures.",
        "It works best on a VGG trained on photos; here it shows what this network knows of texture.",
    ),
    (
        "What fools it",
        attacks,
        "Changes within ε of each pixel, in units of the images before any preprocessing, turn the prediction.",
        "An attack that fails proves nothing; a curve bounds the robustness from above.",
    ),
    (
        "The object, without a mask to learn from",
        segments,
        "GrabCut, started from what the gradient holds to be important and unimportant.",
        "The gradient marks the part that decides, which may be less than the object.",
    ),
    (
        "What it gets wrong",
        mistakes,
        "The highest losses, what is taken for what, and whether it is as sure as it is right.",
        "High losses are often wrong labels: look before you blame the network.",
    ),
)
