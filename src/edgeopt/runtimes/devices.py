def resolve(device, runtime):
    return "cpu"
