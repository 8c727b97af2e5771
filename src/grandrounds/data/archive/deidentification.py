"""What identifies a person is counted, by DICOM PS3.15, table E.1-1 (the basic profile).

The counts say what a header holds, not that a file without findings is anonymous.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from grandrounds.core.sentence import Sentence, phrase
from grandrounds.data.dicom.instance import Instance

HeaderFinding: TypeAlias = Literal[
    "name", "patient ID", "birth date", "other identifiers", "address", "dates", "staff",
    "institution", "device", "person", "free text", "UIDs", "private tags", "burned-in annotation",
]  # fmt: skip
DIRECT: tuple[HeaderFinding, ...] = (
    *("name", "patient ID", "birth date", "other identifiers", "address"),
)
# The profile removes or empties (X, Z) or replaces (D, U) each of these.
ATTRIBUTES: Mapping[HeaderFinding, tuple[str, ...]] = {
    "name": (
        *("PatientName", "PatientBirthName", "PatientMotherBirthName", "OtherPatientNames"),
        *("ResponsiblePerson", "PersonName"),
    ),
    "patient ID": ("PatientID",),
    "birth date": ("PatientBirthDate", "PatientBirthTime"),
    "other identifiers": (
        *("AccessionNumber", "OtherPatientIDs", "OtherPatientIDsSequence", "IssuerOfPatientID"),
        *("AdmissionID", "IssuerOfAdmissionID", "StudyID", "MedicalRecordLocator"),
        *("PatientInsurancePlanCodeSequence", "ServiceEpisodeID", "RequestedProcedureID"),
        "FillerOrderNumberImagingServiceRequest",
        "PlacerOrderNumberImagingServiceRequest",
        *("ScheduledProcedureStepID", "PerformedProcedureStepID"),
        *("ReferencedPatientSequence", "ReferencedPatientAliasSequence"),
    ),
    "address": (
        *("PatientAddress", "PatientTelephoneNumbers", "PatientTelecomInformation"),
        *("CountryOfResidence", "RegionOfResidence", "CurrentPatientLocation"),
        *("PatientInstitutionResidence", "MilitaryRank", "BranchOfService", "Occupation"),
        *("PersonAddress", "PersonTelephoneNumbers"),
    ),
    "dates": (
        *("StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDate"),
        *("AcquisitionTime", "AcquisitionDateTime", "ContentDate", "ContentTime"),
        *("InstanceCreationDate", "InstanceCreationTime", "AdmittingDate", "AdmittingTime"),
        *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
        *("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime"),
        *("ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"),
        *("DateOfSecondaryCapture", "TimeOfSecondaryCapture", "DateOfLastCalibration"),
        *("TimeOfLastCalibration", "LastMenstrualDate", "TimezoneOffsetFromUTC"),
        *("FrameAcquisitionDateTime", "FrameReferenceDateTime", "IssueDateOfImagingServiceRequest"),
        *("StudyVerifiedDate", "StudyReadDate", "DischargeDate"),
    ),
    "staff": (
        *("ReferringPhysicianName", "ReferringPhysicianAddress", "OperatorsName"),
        *("ReferringPhysicianTelephoneNumbers", "ReferringPhysicianIdentificationSequence"),
        *("PerformingPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy"),
        *("RequestingPhysician", "ConsultingPhysicianName", "ScheduledPerformingPhysicianName"),
        *("ContentCreatorName", "VerifyingObserverName", "HumanPerformerName"),
        *("OperatorIdentificationSequence", "PerformingPhysicianIdentificationSequence"),
    ),
    "institution": (
        *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
        *("InstitutionCodeSequence", "RequestingService", "PerformedLocation"),
        *("ScheduledProcedureStepLocation", "HumanPerformerOrganization"),
    ),
    "device": (
        *("StationName", "DeviceSerialNumber", "DetectorID", "GantryID", "PlateID"),
        *("PerformedStationAETitle", "PerformedStationName", "ScheduledStationAETitle"),
        *("ScheduledStationName", "RetrieveAETitle", "SourceApplicationEntityTitle"),
    ),
    "person": (
        *("PatientAge", "PatientSex", "PatientSize", "PatientWeight", "EthnicGroup"),
        *("PatientSexNeutered", "PatientReligiousPreference", "PregnancyStatus", "SmokingStatus"),
        *("PatientPrimaryLanguageCodeSequence", "MedicalAlerts", "Allergies", "PatientState"),
        *("SpecialNeeds", "PatientSpeciesDescription"),
    ),
    "free text": (
        *("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments"),
        *("PatientComments", "AdditionalPatientHistory", "StudyComments", "VisitComments"),
        *("AdmittingDiagnosesDescription", "AcquisitionComments", "DerivationDescription"),
        *("RequestedProcedureDescription", "PerformedProcedureStepDescription"),
        *("ScheduledProcedureStepDescription", "ReasonForStudy", "AcquisitionProtocolDescription"),
        *("ImagingServiceRequestComments", "RequestedProcedureComments", "FrameComments"),
        *("CommentsOnThePerformedProcedureStep", "OverlayComments", "OverlayData", "CurveData"),
        *("ReasonForTheRequestedProcedure", "DischargeDiagnosisDescription", "InterpretationText"),
    ),
    "UIDs": (
        *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"),
        *("ReferencedSOPInstanceUID", "MediaStorageSOPInstanceUID", "DeviceUID"),
        *("InstanceCreatorUID", "SynchronizationFrameOfReferenceUID", "ConcatenationUID"),
        *("DimensionOrganizationUID", "IrradiationEventUID", "UID"),
    ),
}  # fmt: skip
# A file that says of itself that the identity was removed may have made-up values here.
_REPLACED = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyID")
_BY_ATTRIBUTE: Mapping[str, HeaderFinding] = {
    name: kind for kind, names in ATTRIBUTES.items() for name in names
}


def findings_of(file: Instance) -> frozenset[HeaderFinding]:
    """Return what the profile would remove from a file's header."""
    masked = {
        name
        for name, value in (("PatientName", file.patient.name), ("PatientID", file.patient.id))
        if not any(letter.isalnum() for letter in value)  # emptied, or overwritten by ***
    }
    named = set(file.present) - masked
    found: set[HeaderFinding] = {_BY_ATTRIBUTE[name] for name in named if name in _BY_ATTRIBUTE}
    if file.private:
        found.add("private tags")
    if file.burned_in:
        found.add("burned-in annotation")
    return frozenset(found)


def is_identified(file: Instance) -> bool:
    """Tell whether a header names its patient: directly, by a number, or by date of birth.

    Where the file says that the identity was removed (0012,0062), a name and a number may be made
    up; other attributes that name a person still count.
    """
    present = set(file.present) - set(_REPLACED if file.deidentified else ())
    if not any(letter.isalnum() for letter in file.patient.name):
        present.discard("PatientName")
    if not any(letter.isalnum() for letter in file.patient.id):
        present.discard("PatientID")
    return any(_BY_ATTRIBUTE.get(name) in DIRECT for name in present)


def count_findings(files: Iterable[Instance]) -> Mapping[str, int]:
    """Return in how many files each finding is, and how many are identified."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(findings_of(file))
        counts["identified"] += is_identified(file)
    return {name: number for name, number in counts.items() if number}


def refusal_of(findings: Mapping[str, int], *, identified: bool) -> Sentence | None:
    """Return why files with these findings are not taken; None where they are."""
    if drawn := findings.get("burned-in annotation"):
        return phrase(
            "{files} of its files say that text is drawn into the picture (0028,0301), which a "
            "volume would keep",
            files=drawn,
        )
    if identified or not findings.get("identified"):
        return None
    return phrase(
        "{files} of its files name the patient (name, number, date of birth or address); write "
        "identified = true under [archive] if such files may be used inside the house",
        files=findings["identified"],
    )
