"""A classic MR series, written as a scanner's: one file for each slice, with a patient in it."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Eva",
    "PatientID": "4711",
    "PatientBirthDate": "19600102",
    "PatientSex": "F",
    "PatientAge": "064Y",
}
STUDY = {
    "StudyDate": "20240305",
    "StudyTime": "101500",
    "StudyID": "1",
    "AccessionNumber": "A-17",
    "ReferringPhysicianName": "",
    "StudyDescription": "Head",
}
T1W = {
    "ScanningSequence": "SE",
    "SequenceVariant": "NONE",
    "MRAcquisitionType": "2D",
    "RepetitionTime": "500",
    "EchoTime": "12",
    "MagneticFieldStrength": "1.5",
    "FlipAngle": "90",
}


def write_series(
    folder: Path, voxels: ArrayLike, affine: NDArray[np.float64], **changes: object
) -> Path:
    """Write voxels (column, row, slice) whose affine has NIfTI's axes; `changes` are elements."""
    folder.mkdir(parents=True)
    values = np.asarray(voxels)
    to_dicom = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    lengths = np.linalg.norm(to_dicom[:3, :3], axis=0)
    unit = to_dicom[:3, :3] / lengths
    uids = {n: generate_uid() for n in ("StudyInstanceUID", "SeriesInstanceUID")}
    for k in range(values.shape[2]):
        made = Dataset()
        known = {**PATIENT, **STUDY, **T1W, **uids, "FrameOfReferenceUID": uids["StudyInstanceUID"]}
        known |= {"SOPClassUID": MRImageStorage, "SOPInstanceUID": generate_uid(), "Modality": "MR"}
        known |= {"ImageType": ["ORIGINAL", "PRIMARY", "M"], "SeriesNumber": 3}
        known |= {"Manufacturer": "SIEMENS", "SeriesDescription": "t1_se", "PatientPosition": "HFS"}
        known |= {"InstanceNumber": k + 1, "SliceThickness": float(lengths[2])}
        known |= {"ImagePositionPatient": list((to_dicom[:3, 2] * k + to_dicom[:3, 3]).round(6))}
        known |= {"ImageOrientationPatient": [*unit[:, 0].round(9), *unit[:, 1].round(9)]}
        known |= {"PixelSpacing": [float(lengths[1]), float(lengths[0])], "SamplesPerPixel": 1}
        known |= {"PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
        known |= {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
        for keyword, value in {**known, **changes}.items():
            setattr(made, keyword, value)
        made.Columns, made.Rows = values.shape[:2]
        made.PixelData = np.ascontiguousarray(values[:, :, k].T.astype("<u2")).tobytes()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = made.SOPClassUID
        meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.file_meta = meta
        made.save_as(folder / f"IM{values.shape[2] - k:04d}", enforce_file_format=True)
    return folder
