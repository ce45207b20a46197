#![no_main]

#[path = "../drive.rs"]
#[allow(dead_code, reason = "it has the other targets as well")]
mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drive::backup(data));
