"""The parameters of the entry points of kernels, read from their files."""

import re

from cupycorr._gpu import source


def without_comments(file):
    return re.sub(r"//[^\n]*", "", source.text(file)).replace("\\\n", " ")


def expanded(parameters, text):
    """A parameter list with its ``*_PARAMETERS`` macros replaced by what the file defines them as."""
    for name, argument in re.findall(r"\b(\w+_PARAMETERS)\b(?:\((\w+)\))?", parameters):
        formal, body = re.search(rf"#define {name}\b(?:\((\w+)\))?([^\n]*)", text).groups()
        if formal:
            body = re.sub(rf"(##)?\b{formal}\b", argument, body).replace("##", "")
        use = f"{name}({argument})" if argument else name
        parameters = parameters.replace(use, body)
    return parameters


def parameters_of(signature):
    """The C type and the name of each parameter of the entry point, as the file has them."""
    text = without_comments(f"{signature.name}.cu")
    entry = signature.name.rpartition("/")[2]
    listed = re.search(rf"\n{entry}\((.*?)\) {{\n", text, re.DOTALL)[1]
    parameters = (" ".join(each.split()) for each in expanded(listed, text).split(","))
    return [re.fullmatch(r"(.*?[\w*]) ?\b(\w+)", each).groups() for each in parameters]


def assert_has_parameters(signature):
    """Check that a signature has the parameters of its entry point: names, order and types."""
    parameters = parameters_of(signature)
    pointers = [name for c_type, name in parameters if c_type.endswith("*")]
    assert pointers == list(signature.pointers)
    assert parameters[: len(pointers)] == [each for each in parameters if each[0].endswith("*")]
    assert [(name, c_type) for c_type, name in parameters[len(pointers) :]] == list(signature.scalars.items())
