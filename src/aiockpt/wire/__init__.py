"""Sans-I/O protocol: HTTP/1.1 (``http1``), S3's headers and documents (``s3``)."""
