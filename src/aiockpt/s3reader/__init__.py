"""File-like readers of S3 objects, and the constructors that choose among them."""

from aiockpt.s3reader.constructor import DCPOptimizedConstructor, S3ReaderConstructor
from aiockpt.s3reader.dcp_optimized import DCPOptimizedS3Reader, ItemRange, RangeGroup
from aiockpt.s3reader.protocol import DCPS3ReaderConstructorProtocol, S3ReaderConstructorProtocol
from aiockpt.s3reader.ranged import RangedS3Reader
from aiockpt.s3reader.s3reader import S3Reader
from aiockpt.s3reader.sequential import SequentialS3Reader

__all__ = [
    "DCPOptimizedConstructor",
    "DCPOptimizedS3Reader",
    "DCPS3ReaderConstructorProtocol",
    "ItemRange",
    "RangeGroup",
    "RangedS3Reader",
    "S3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "SequentialS3Reader",
]
