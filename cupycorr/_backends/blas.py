from . import reference

forward, vjp = reference.forward, reference.vjp


def how(problem):
    return "placeholder"
