//! Mistakes that are planted around the machine, to see that the exploration finds them.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The copy is made before records are tapped.
    CopyBeforeTap,
    /// *Begin* is sent while requests are inside, or not committed.
    BeginBeforeDrained,
    /// A copy goes on with a new incarnation of the owner.
    CopyAcrossIncarnations,
    /// Records are forwarded before they are committed.
    UncommittedForwarded,
    /// The saved map does not survive. This one does no harm: decisions say all that matters.
    MapNotKept,
    /// A copy is sealed that another session brought than the one that is tapped.
    OtherCopySealed,
    /// The successor waits for the owner's LSNs before it repeats an answer.
    OwnersLsnKept,
    /// The decision to seal does not survive.
    SealedNotKept,
    /// The owner takes the range back when the session has ended.
    TakenBackWithoutAsking,
    /// The owner's write to take back is on its way while it seals.
    LateTakeBack,
    /// An abort gives a published range back.
    AbortAfterPublication,
    /// Remembered answers are not copied.
    AnswersLeftBehind,
    /// A successor that restarts answers by the map alone.
    ReadyWithoutBegun,
    /// A round cuts forwarded records that no file has.
    RoundCutsForwarded,
    /// *Begin* of an ended session is taken.
    OldBegin,
    /// What is on the disk from an earlier ownership counts as the copy.
    StaleManifest,
    /// A copy whose tap had a gap is sealed.
    TapWithGap,
    /// A copy whose session has ended is published, and begun.
    CopyAcrossSessions,
    /// *Voided* is said and forgotten.
    VoidedThenBegun,
    /// *Begun* is in a journal that is cut.
    BegunInJournal,
    /// *Begun* is not written down before it is said.
    BegunNotKept,
    /// A successor is planned while the range is handed over.
    SuccessorWhileFrom,
    /// A leaving node is removed while the range comes from it.
    RemovedWhileFrom,
    /// An owner drops what the map says is another's.
    DroppedByMap,
}
