"""ONNX files stand for themselves: a tensor in another file is found wherever the format allows tensors."""

import numpy as np
import pytest

from genaffect_jax.errors import WeightsError
from genaffect_jax.io.onnx_file import parse_model

onnx = pytest.importorskip("onnx")
helper = onnx.helper


def inside(name="w"):
    return onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), name)


def outside(name="w", location="weights.data"):
    tensor = inside(name)
    onnx.external_data_helper.set_external_data(tensor, location, 0, 16)
    tensor.ClearField("raw_data")
    return tensor


def graph(nodes=(), constants=(), sparse=()):
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    return helper.make_graph(list(nodes), "g", [], [output], list(constants), sparse_initializer=list(sparse))


def model(*args, functions=(), **more):
    return helper.make_model(graph(*args, **more), functions=list(functions))


def constant(tensor):
    return helper.make_node("Constant", [], ["y"], value=tensor)


def branches(tensor):
    """A node with a graph, in whose node is a graph with the tensor."""
    inner = helper.make_node("If", ["c"], ["y"], then_branch=graph([constant(tensor)]), else_branch=graph())
    return helper.make_node("If", ["c"], ["y"], then_branch=graph([inner]), else_branch=graph())


def function(tensor):
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function("own", "F", [], ["y"], [constant(tensor)], opsets)


def sparse(tensor):
    return helper.make_sparse_tensor(tensor, onnx.numpy_helper.from_array(np.arange(4), "i"), [9])


def trained(tensor):
    made = model()
    made.training_info.add().initialization.initializer.append(tensor)
    return made


PLACES = {
    "initializer": lambda tensor: model(constants=[tensor]),
    "attribute": lambda tensor: model([constant(tensor)]),
    "list in an attribute": lambda tensor: model([helper.make_node("Custom", [], ["y"], values=[inside(), tensor])]),
    "graph in a graph's node": lambda tensor: model([branches(tensor)]),
    "function": lambda tensor: model(functions=[function(tensor)]),
    "sparse initializer": lambda tensor: model(sparse=[sparse(tensor)]),
    "sparse attribute": lambda tensor: model([helper.make_node("Constant", [], ["y"], sparse_value=sparse(tensor))]),
    "training": trained,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_stands(place):
    parse_model(PLACES[place](inside()).SerializeToString(), "net.onnx")
    with pytest.raises(
        WeightsError, match=r"other files \('weights.data'\).*onnx.load\('net.onnx'\).*external_data=False"
    ):
        parse_model(PLACES[place](outside()).SerializeToString(), "net.onnx")


def test_a_part_that_a_compiler_made_beside_the_file_is_found():
    def compiled(embed_mode):
        node = helper.make_node("EPContext", [], ["y"], embed_mode=embed_mode, ep_cache_context="net.bin")
        return model([node]).SerializeToString()

    parse_model(compiled(1), "net.onnx")
    with pytest.raises(WeightsError, match=r"other files \('net.bin'\)"):
        parse_model(compiled(0), "net.onnx")


def test_a_message_names_a_few_of_many_files():
    many = model(constants=[outside(f"w{i}", f"{i:04}.bin") for i in range(500)])
    with pytest.raises(WeightsError, match=r"'0000.bin'; '0001.bin'; '0002.bin'; and 497 more") as error:
        parse_model(many.SerializeToString(), "net.onnx")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"no model", b"\x0a\xff\xff", b"\x00" * 100])
def test_a_damaged_file_is_one_error(content):
    with pytest.raises(WeightsError, match="damaged, or no ONNX file"):
        parse_model(content, "net.onnx")
