#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| diffkeeper_fuzz::events(data));
