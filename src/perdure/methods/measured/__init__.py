"""What several methods measure on data: gradients of whole weights, second moments of inputs, updates of the past."""
