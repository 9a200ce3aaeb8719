"""Sans-I/O file layouts: the bytes around tensors' memory in torch.save archives and safetensors files."""
