#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "io/json.h"
#include "support/catch.h"
#include "support/scratch.h"
#include "train/console.h"
#include "train/event_file.h"
#include "train/format.h"
#include "train/metrics.h"
#include "train/run_folder.h"

using namespace sieve;
using sieve::test::Scratch;
using sieve::test::text_of;

namespace {

MetricRow row_of(std::int64_t step, double loss) {
  MetricRow row{step, {}};
  row.add("tokens", static_cast<double>(step * 100));
  row.add("loss/train", loss);
  return row;
}

// A second reader of the format: TFRecord frames, then the two fields of Event that matter. Knows nothing of the
// writer's code but crc32c.
std::vector<std::pair<std::int64_t, float>> read_events(const std::string& bytes) {
  std::vector<std::pair<std::int64_t, float>> out;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t length = 0;
    std::uint32_t crc = 0;
    std::memcpy(&length, &bytes[at], 8);
    std::memcpy(&crc, &bytes[at + 8], 4);
    REQUIRE(crc == masked_crc32c(bytes.substr(at, 8)));
    const std::string event = bytes.substr(at + 12, length);
    std::memcpy(&crc, &bytes[at + 12 + length], 4);
    REQUIRE(crc == masked_crc32c(event));
    at += 16 + length;
    if (event[9] != 0x10) continue;  // after the 9 bytes of wall_time comes step, or it is the version record
    std::int64_t step = 0;
    std::size_t i = 10;
    for (int shift = 0;; shift += 7) {
      const auto b = static_cast<unsigned char>(event[i++]);
      step |= static_cast<std::int64_t>(b & 0x7f) << shift;
      if (b < 0x80) break;
    }
    float value = 0;
    std::memcpy(&value, &event[event.size() - 4], 4);  // the last scalar closes the message
    out.emplace_back(step, value);
  }
  return out;
}

}  // namespace

TEST_CASE("crc32c is the Castagnoli polynomial's") {
  CHECK(crc32c("123456789") == 0xe3069283u);  // the check value of RFC 3720
  CHECK(crc32c("") == 0u);
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);  // RFC 3720, B.4
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
}

TEST_CASE("event records have TensorFlow's bytes") {
  const std::string record = event_record(encode_file_version(1.0));
  // What every event file starts with: a record of 24 bytes, the masked crc of that length, Event.wall_time.
  CHECK(record.substr(0, 13) == std::string("\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7fK\"\x09", 13));
  CHECK(record.substr(13, 23) == std::string("\x00\x00\x00\x00\x00\x00\xf0\x3f\x1a\x0d"
                                             "brain.Event:2",
                                             23));
  CHECK(record.size() == 12 + 24 + 4);

  const std::vector<std::pair<std::string, double>> scalars{{"loss/train", 2.5}};
  const std::string expected(
      "\x09\x00\x00\x00\x00\x00\x00\xf0\x3f"  // wall_time = 1
      "\x10\xac\x02"                          // step = 300
      "\x2a\x13\x0a\x11\x0a\x0aloss/train"    // summary { value { tag
      "\x15\x00\x00\x20\x40",                 // simple_value = 2.5f
      9 + 3 + 16 + 5);
  CHECK(encode_scalars(1.0, 300, scalars) == expected);
}

TEST_CASE("metrics files lose the rows of steps after the restored one") {
  const Scratch scratch;
  const std::vector<std::string> columns{"tokens", "loss/train"};
  {
    MetricsWriter writer(scratch.path(), {}, columns, -1);
    for (int step = 1; step <= 5; ++step) writer.write(row_of(step * 10, 1.0 / step));
  }
  std::ofstream(scratch / "metrics.jsonl", std::ios::app) << "{\"step\":60,\"tok";  // torn by a crash
  std::ofstream(scratch / "metrics.csv", std::ios::app) << "60,60";
  {
    MetricsWriter writer(scratch.path(), {}, columns, 30);
    writer.write(row_of(40, 7.0));
  }
  CHECK(text_of(scratch / "metrics.jsonl") ==
        "{\"step\":10,\"tokens\":1000,\"loss/train\":1}\n{\"step\":20,\"tokens\":2000,\"loss/train\":0.5}\n"
        "{\"step\":30,\"tokens\":3000,\"loss/train\":0.3333333333333333}\n{\"step\":40,\"tokens\":4000,\"loss/"
        "train\":7}\n");
  CHECK(text_of(scratch / "metrics.csv") ==
        "step,tokens,loss/train\n10,1000,1\n20,2000,0.5\n30,3000,0.3333333333333333\n40,4000,7\n");
  std::vector<std::int64_t> steps;
  for (const auto& entry : std::filesystem::directory_iterator(scratch / "tb")) {
    for (const auto& [step, value] : read_events(text_of(entry.path()))) {
      steps.push_back(step);
      if (step == 40) CHECK(value == 7.0f);
    }
  }
  std::sort(steps.begin(), steps.end());
  CHECK(steps == std::vector<std::int64_t>{10, 20, 30, 40});
}

TEST_CASE("a row may lack columns, and values that are not finite are null") {
  const Scratch scratch;
  MetricsWriter writer(scratch.path(), {.tensorboard = false}, {"loss/val", "loss/train"}, -1);
  MetricRow row{3, {}};
  row.add("loss/train", std::nan(""));
  row.add("extra", 1e300);
  writer.write(row);
  CHECK(text_of(scratch / "metrics.jsonl") == "{\"step\":3,\"loss/train\":null,\"extra\":1e+300}\n");
  CHECK(text_of(scratch / "metrics.csv") == "step,loss/val,loss/train\n3,,\n");
  CHECK_FALSE(std::filesystem::exists(scratch / "tb"));
}

TEST_CASE("a continued CSV keeps old values under new columns") {
  const Scratch scratch;
  std::ofstream(scratch / "metrics.csv") << "step,a,b\n1,10,20\n2,11,21\n";
  truncate_csv((scratch / "metrics.csv").string(), {"b", "c", "a"}, 1);
  CHECK(text_of(scratch / "metrics.csv") == "step,b,c,a\n1,20,,10\n");
}

TEST_CASE("damaged event files are cut where the damage begins") {
  const Scratch scratch;
  const std::vector<std::pair<std::string, double>> scalars{{"x", 1.0}};
  std::string path;
  {
    EventFile file(scratch.path());
    path = file.path();
    for (int step = 1; step <= 3; ++step) file.write(1.0, step, scalars);
  }
  std::string bytes = text_of(path);
  const std::size_t whole = bytes.size(), record = event_record(encode_scalars(1.0, 1, scalars)).size();
  bytes[whole - record + 14] ^= 1;  // inside the last record
  std::ofstream(path, std::ios::binary) << bytes;
  truncate_events(scratch.path(), 100);
  CHECK(std::filesystem::file_size(path) == whole - record);
  std::ofstream(path, std::ios::binary | std::ios::app) << "torn";
  truncate_events(scratch.path(), 1);
  CHECK(std::filesystem::file_size(path) == whole - 2 * record);
}

TEST_CASE("numbers as people read them") {
  CHECK(format_count(0) == "0");
  CHECK(format_count(950) == "950");
  CHECK(format_count(1234) == "1.2k");
  CHECK(format_count(412'345) == "412k");
  CHECK(format_count(124.5e6) == "124M");
  CHECK(format_count(1.5e9) == "1.5B");
  CHECK(format_si(0.86e9, "FLOP") == "860 MFLOP");
  CHECK(format_si(1.071e9, "FLOP") == "1.07 GFLOP");
  CHECK(format_grouped(0) == "0");
  CHECK(format_grouped(287644) == "287 644");
  CHECK(format_grouped(1000000) == "1 000 000");
  CHECK(format_grouped(-1234) == "-1 234");
  CHECK(format_seconds(12.4) == "12s");
  CHECK(format_seconds(185) == "3m05s");
  CHECK(format_seconds(4 * 3600 + 42 * 60 + 7) == "4h42m");
  CHECK(format_seconds(19263.25 * 3600) == "802d15h");
  CHECK(format_seconds(std::nan("")) == "?");
  CHECK(format_bytes(512) == "512 B");
  CHECK(format_bytes(31.2 * 1024 * 1024 * 1024) == "31.2 GiB");
  CHECK(json_number(0.1) == "0.1");
  CHECK(json_number(std::nan("")) == "null");
}

TEST_CASE("the progress line") {
  ProgressRow row{.step = 1200, .total_steps = 19073, .loss = 3.4123, .val = 3.51, .lr = 5.9e-4, .grad_norm = 0.831};
  row.tokens_per_second = 412e3;
  row.mfu = 0.381;
  row.memory_bytes = 41.2 * 1024 * 1024 * 1024;
  row.data_wait = 0.003;
  row.eta_seconds = 4 * 3600 + 42 * 60;
  CHECK(progress_line(row) ==
        "step  1200/19073 loss 3.412 val 3.510 lr 5.9e-04 gnorm 0.83 412k tok/s mfu 38.1% mem 41.2 GiB data 0.3% eta "
        "4h42m");
}

TEST_CASE("the line of the selection has the range of the layers") {
  const SelectionStats a{
      .band_over_k = 1.02, .saturated_over_k = 0.5, .ever_selected = 0.79, .mean_lifetime = 537.4, .score_std = 0.61};
  const SelectionStats b{
      .band_over_k = 1.92, .saturated_over_k = 0.04, .ever_selected = 1, .mean_lifetime = 428, .score_std = 0.06};
  CHECK(selection_line({a, b}) ==
        "selection |F|/k 1.02..1.92 saturated 0.04..0.50 ever 0.79..1.00 lifetime 428..537 score std 0.06..0.61");
  CHECK(selection_line({b}) == "selection |F|/k 1.92 saturated 0.04 ever 1.00 lifetime 428 score std 0.06");
  CHECK_THROWS_AS(selection_line({}), Error);
}

TEST_CASE("the run folder refuses to be written over") {
  const Scratch scratch;
  const RunFolder folder(scratch / "run");
  CHECK(folder.choose_checkpoint("never").empty());
  CHECK(folder.choose_checkpoint("auto").empty());
  const auto message = [&](const std::string& resume, Exit code) {
    try {
      folder.choose_checkpoint(resume);
    } catch (const Error& e) {
      CHECK(e.code() == code);
      return std::string(e.what());
    }
    return std::string("no error");
  };
  CHECK(message("must", Exit::data).find("holds no checkpoint") != std::string::npos);
  CHECK(message("nowhere", Exit::data).find("nowhere does not exist") != std::string::npos);
  ConfigTree tree;
  folder.create(tree, {"sieve", "pretrain", "it's"}, 0);
  CHECK(text_of(folder.root() / "config.input" / "start_00000000" / "argv") == "'sieve' 'pretrain' 'it'\\''s'\n");
  CHECK(message("never", Exit::config).find("is not empty: continue it with --resume auto") != std::string::npos);
  CHECK(folder.choose_checkpoint("auto").empty());  // killed before its first checkpoint: from scratch

  StatusFile status(folder.root() / "status.json", 3600);
  status.beat({.status = "running", .step = 3, .total_steps = 10});
  status.beat({.status = "running", .step = 4, .total_steps = 10});  // too soon
  CHECK(read_json(folder.root() / "status.json")["step"] == 3);
  CHECK(read_json(folder.root() / "status.json")["exit_code"].is_null());
  status.write(
      {.status = "finished", .step = 10, .total_steps = 10, .tokens = 0, .loss = 0, .exit_code = 0, .message = ""});
  CHECK(read_json(folder.root() / "status.json")["exit_code"] == 0);
}
