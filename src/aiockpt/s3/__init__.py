"""S3: the control plane on aiobotocore, signing, and the bulk operations."""
