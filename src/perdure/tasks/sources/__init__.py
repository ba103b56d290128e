"""Where examples come from: files, package archives, the hub, published benchmarks, images."""
