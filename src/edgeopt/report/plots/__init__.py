"""The charts of a report: one module a kind, each from a document to :class:`~.chart.Chart`."""
