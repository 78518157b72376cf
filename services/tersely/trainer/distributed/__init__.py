"""Several processes that train one policy, by torch.distributed; everything else happens in the process of rank 0."""
