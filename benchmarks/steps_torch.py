"""Training steps of torchvision's networks: MODEL:TYPE, in the memory format that is fastest on a CPU."""

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


CASES = {
    f"{name}:{kind}": training_step(
        build, batch, kind == "bfloat16", torch.contiguous_format if name in TRANSFORMERS else torch.channels_last
    )
    for name, (build, batch) in MODELS.items()
    for kind in ("float32", "bfloat16")
}

if __name__ == "__main__":
    harness.serve(CASES)
