"""The drop-in contract's place for the file system and the storage reader and writer."""

from aiockpt.dcp.file_system import S3FileSystem
from aiockpt.dcp.storage_reader import S3StorageReader
from aiockpt.dcp.storage_writer import S3StorageWriter

__all__ = ["S3FileSystem", "S3StorageReader", "S3StorageWriter"]
