//! The component's memory: an arena that is there when an instance begins, and the standard allocator once it
//! is full.
//!
//! An instance lives for one batch. The standard allocator would have the host add memory to each and take it
//! away again: two changes of the page table, of which every processor is told while the batch waits. Most
//! batches need less than the arena has, so what is freed is only given back if it was the last taken.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};

/// An allocator with so many bytes of its own.
#[repr(C, align(16))]
pub struct Arena<const BYTES: usize> {
    space: UnsafeCell<[u8; BYTES]>,
    /// Bytes taken.
    taken: Cell<usize>,
}

// SAFETY: a component has one thread. (Tests keep each arena to one.)
unsafe impl<const BYTES: usize> Sync for Arena<BYTES> {}

impl<const BYTES: usize> Arena<BYTES> {
    /// An arena of which nothing is taken.
    pub const fn new() -> Arena<BYTES> {
        Arena { space: UnsafeCell::new([0; BYTES]), taken: Cell::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.space.get().cast()
    }

    /// Where in the arena this is, if it is of the arena.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = (pointer as usize).wrapping_sub(self.start() as usize);
        (offset < BYTES).then_some(offset)
    }

    /// Takes bytes; the offset at which they begin.
    fn take(&self, layout: Layout) -> Option<usize> {
        let address = self.start() as usize + self.taken.get();
        let offset = self.taken.get() + address.next_multiple_of(layout.align()) - address;
        let end = offset.checked_add(layout.size()).filter(|end| *end <= BYTES)?;
        self.taken.set(end);
        Some(offset)
    }
}

// SAFETY: what is taken lies between `taken` before and after, aligned, within `space`, and `taken` goes back
// only over what is freed or shrunk; all else is the standard allocator's.
unsafe impl<const BYTES: usize> GlobalAlloc for Arena<BYTES> {
    #[inline(never)]
    // SAFETY: what is handed out is of the layout, from one allocator or the other.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: the offset is within the arena.
            Some(offset) => unsafe { self.start().add(offset) },
            // SAFETY: the caller's promises are the same.
            None => unsafe { System.alloc(layout) },
        }
    }

    #[inline(never)]
    // SAFETY: it goes back to the allocator that it is of.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(offset) if offset + layout.size() == self.taken.get() => self.taken.set(offset),
            Some(_) => {}
            // SAFETY: it is the standard allocator's, and the caller's promises are the same.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    #[inline(never)]
    // SAFETY: it stays with the allocator that it is of, or is copied.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(pointer) else {
            // SAFETY: it is the standard allocator's, and the caller's promises are the same.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        let is_last = offset + layout.size() == self.taken.get();
        if is_last && offset.checked_add(size).is_some_and(|end| end <= BYTES) {
            self.taken.set(offset + size);
            return pointer;
        }
        if size <= layout.size() {
            return pointer;
        }
        // SAFETY: the caller promises that the size, rounded up, is one; and both places hold what is copied
        // and do not overlap.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(pointer, layout.size());
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// What is held: where, of which layout, and filled with what.
    struct Held(*mut u8, Layout, u8);

    impl Held {
        fn check(&self) {
            assert_eq!(self.0 as usize % self.1.align(), 0);
            // SAFETY: it is held.
            let bytes = unsafe { std::slice::from_raw_parts(self.0, self.1.size()) };
            assert!(bytes.iter().all(|byte| *byte == self.2), "{:?} was overwritten", self.1);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(usize, u32),
        Free(usize),
        Resize(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1usize..200, 0u32..9).prop_map(|(size, align)| Step::Alloc(size, align)),
            any::<usize>().prop_map(Step::Free),
            (any::<usize>(), 1usize..300).prop_map(|(which, size)| Step::Resize(which, size)),
        ]
    }

    proptest! {
        #[test]
        fn nothing_that_is_held_overlaps_or_is_lost(steps in prop::collection::vec(step(), 1..200)) {
            let arena = Arena::<1024>::new();
            let mut held: Vec<Held> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                let fill = number as u8;
                match step {
                    Step::Alloc(size, align) => {
                        let layout = layout(size, 1 << align);
                        // SAFETY: the size is not 0, and the new bytes are there to be written.
                        let pointer = unsafe { arena.alloc(layout) };
                        // SAFETY: as many were taken.
                        unsafe { pointer.write_bytes(fill, size) };
                        held.push(Held(pointer, layout, fill));
                    }
                    Step::Free(which) if !held.is_empty() => {
                        let Held(pointer, layout, _) = held.swap_remove(which % held.len());
                        // SAFETY: it was held, of this layout, and is no longer used.
                        unsafe { arena.dealloc(pointer, layout) };
                    }
                    Step::Resize(which, size) if !held.is_empty() => {
                        let at = which % held.len();
                        let Held(pointer, before, fill) = held[at];
                        // SAFETY: it was held, of this layout, and the new bytes are there to be written.
                        let moved = unsafe { arena.realloc(pointer, before, size) };
                        Held(moved, layout(size.min(before.size()), before.align()), fill).check();
                        // SAFETY: as many were taken.
                        unsafe { moved.write_bytes(fill, size) };
                        held[at] = Held(moved, layout(size, before.align()), fill);
                    }
                    Step::Free(_) | Step::Resize(..) => {}
                }
                held.iter().for_each(Held::check);
            }
            for Held(pointer, layout, _) in held {
                // SAFETY: it was held, of this layout, and is no longer used.
                unsafe { arena.dealloc(pointer, layout) };
            }
        }
    }

    #[test]
    fn what_was_taken_last_grows_in_place_and_is_given_back() {
        let arena = Arena::<256>::new();
        let small = layout(16, 8);
        // SAFETY: every pointer is used with the layout that it has.
        unsafe {
            let first = arena.alloc(small);
            assert_eq!(arena.realloc(first, small, 200), first);
            let grown = layout(200, 8);
            let elsewhere = arena.alloc(grown);
            assert_eq!(arena.offset(elsewhere), None, "the standard allocator has it");
            arena.dealloc(elsewhere, grown);
            arena.dealloc(first, grown);
            assert_eq!(arena.taken.get(), 0);
        }
    }
}
