"""Torchvision's networks in the memory format that is fastest on a CPU: training steps MODEL:TYPE, and predictions.

A prediction takes the quickest of three forms: as it is, traced and frozen (its batch norms folded), and compiled.
"""

import harness

torch = harness.torch()

import torchvision


def timm_network(name):
    import timm

    return timm.create_model(name, pretrained=False)


MODELS = {
    "resnet50": (lambda: torchvision.models.resnet50(weights=None), 16),
    "resnet50-group": (
        lambda: torchvision.models.resnet50(weights=None, norm_layer=lambda c: torch.nn.GroupNorm(32, c)),
        16,
    ),
    "vgg16": (lambda: torchvision.models.vgg16(weights=None), 8),
    "efficientnet-b0": (lambda: torchvision.models.efficientnet_b0(weights=None), 16),
    "googlenet": (lambda: torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False), 16),
    "vit-tiny": (lambda: timm_network("vit_tiny_patch16_224"), 8),
    "swin-tiny": (lambda: torchvision.models.swin_t(weights=None), 8),
}
TRANSFORMERS = ("vit-tiny", "swin-tiny")  # channels first is what they run fastest in


def training_step(build, batch, bfloat16, memory_format):
    def factory():
        torch.manual_seed(0)
        model = build().train().to(memory_format=memory_format)
        images = torch.rand(batch, 3, 224, 224).contiguous(memory_format=memory_format)
        labels = torch.randint(0, 1000, (batch,))
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        loss_of = torch.nn.CrossEntropyLoss()

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            return float(loss)

        return step, {"images": batch}

    return factory


def prediction(build, batch):
    def factory():
        torch.manual_seed(0)
        model = build().eval().to(memory_format=torch.channels_last)
        images = torch.rand(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)

        def frozen():
            traced = torch.jit.freeze(torch.jit.trace(model, images))
            return called(torch.jit.optimize_for_inference(traced))

        def called(network):
            return torch.no_grad()(lambda: network(images).softmax(-1).numpy())

        forms = {
            "as it is": lambda: called(model),
            "traced and frozen": frozen,
            "compiled": lambda: called(torch.compile(model)),
        }
        with torch.no_grad():
            form, step = harness.fastest(forms)
        return step, {"images": batch, "told": lambda: {"form": form}}

    return factory


CASES = {
    f"{name}:{kind}": training_step(
        build, batch, kind == "bfloat16", torch.contiguous_format if name in TRANSFORMERS else torch.channels_last
    )
    for name, (build, batch) in MODELS.items()
    for kind in ("float32", "bfloat16")
}
CASES |= {f"resnet50-inference:{batch}": prediction(MODELS["resnet50"][0], batch) for batch in (1, 32)}

if __name__ == "__main__":
    harness.serve(CASES)
