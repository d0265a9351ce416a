def input_hints(model):
    return {}
