"""Sans-I/O file layouts: what bytes surround a tensor's memory in torch.save archives and safetensors files."""
