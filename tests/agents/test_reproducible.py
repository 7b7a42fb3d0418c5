"""No sum in an update has an order that the threads decide."""

import pytest
from tensorflow.python.eager import context

from veorl_tf.agents.stage import Update


def optimised_nodes(function, *arguments):
    """Nodes of everything that ran, as TensorFlow's graph optimiser left them."""
    context.context().enable_graph_collection()
    try:
        function(*arguments)
        graphs = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    for graph in graphs:
        graph = graph.post_optimization_graph
        yield from graph.node
        for function in graph.library.function:
            yield from function.node_def


@pytest.mark.parametrize(
    ("names", "unroll"),
    [
        ("metaworld veorl", False),
        ("dmc_vision dreamerv2", True),
        ("metaworld dreamerv3", False),
        ("dmc_vision dreamerv3_nature", False),
    ],
)
def test_sums_have_two_terms(names, unroll, tiny_config, make_agent, random_batches):
    """The `AddN` kernel orders three terms or more by whose buffer is free first."""
    config = tiny_config(names, {"unroll": unroll})
    for stage in make_agent(config).stages():
        update, batches = Update(stage, 0), random_batches(stage, config)
        sums = [
            len([name for name in node.input if not name.startswith("^")])
            for node in optimised_nodes(update, batches, 0)
            if node.op in ("AddN", "AccumulateNV2")
        ]
        assert len(sums) > 10 and max(sums) == 2, (stage.name, sums)
