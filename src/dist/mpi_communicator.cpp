#include "dist/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "core/error.h"

namespace sieve {
namespace {

void check(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int size = 0;
  MPI_Error_string(code, text, &size);
  fail(Exit::peer, "mpi", call, ": ", std::string_view(text, static_cast<std::size_t>(size)));
}

MPI_Datatype mpi_type(DType t) {
  switch (t) {
    case DType::f32: return MPI_FLOAT;
    case DType::f64: return MPI_DOUBLE;
    case DType::i32: return MPI_INT32_T;
    case DType::i64: return MPI_INT64_T;
    default: fail(Exit::internal, "mpi", "no reduction of ", name_of(t));
  }
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(std::unique_ptr<MpiSession> session, const MpiOptions& options)
      : Communicator(session->rank(), session->size()), session_(std::move(session)), chunk_(options.chunk_bytes) {
    session_->call([this] {
      check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
      check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
      MPI_Comm machine = MPI_COMM_NULL;
      check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
      check(MPI_Comm_rank(machine, &local_rank_), "MPI_Comm_rank");
      check(MPI_Comm_free(&machine), "MPI_Comm_free");
    });
  }
  ~MpiCommunicator() override {
    if (abandoned()) session_->skip_finalize();
  }
  std::string_view backend() const override { return "mpi"; }
  int local_rank() const override { return local_rank_; }

 protected:
  void do_all_reduce(void* values, std::int64_t count, DType dtype, ReduceOp op) override {
    const auto width = size_of(dtype);
    pieces(static_cast<std::size_t>(count) * width, width, [&](std::size_t at, std::size_t bytes) {
      MPI_Request request;
      check(MPI_Iallreduce(MPI_IN_PLACE, static_cast<char*>(values) + at, static_cast<int>(bytes / width),
                           mpi_type(dtype), op == ReduceOp::sum ? MPI_SUM : MPI_MAX, comm_, &request),
            "MPI_Iallreduce");
      wait(&request, 1);
    });
  }

  void do_reduce(void* values, std::int64_t count, DType dtype, int root) override {
    const auto width = size_of(dtype);
    pieces(static_cast<std::size_t>(count) * width, width, [&](std::size_t at, std::size_t bytes) {
      char* mine = static_cast<char*>(values) + at;
      MPI_Request request;
      check(MPI_Ireduce(rank() == root ? MPI_IN_PLACE : mine, rank() == root ? mine : nullptr,
                        static_cast<int>(bytes / width), mpi_type(dtype), MPI_SUM, root, comm_, &request),
            "MPI_Ireduce");
      wait(&request, 1);
    });
  }

  void do_broadcast(void* values, std::size_t bytes, int root) override {
    pieces(bytes, 1, [&](std::size_t at, std::size_t size) {
      MPI_Request request;
      check(MPI_Ibcast(static_cast<char*>(values) + at, static_cast<int>(size), MPI_BYTE, root, comm_, &request),
            "MPI_Ibcast");
      wait(&request, 1);
    });
  }

  void do_all_gather(const void* mine, void* all, std::size_t bytes_each) override {
    if (bytes_each <= chunk_) {
      session_->call([&] {
        MPI_Request request;
        const int count = static_cast<int>(bytes_each);
        check(MPI_Iallgather(mine, count, MPI_BYTE, all, count, MPI_BYTE, comm_, &request), "MPI_Iallgather");
        wait(&request, 1);
      });
      return;
    }
    // One MPI_Allgather of pieces would scatter them over `all`; parts this large go by themselves.
    for (int root = 0; root < size(); ++root) {
      char* part = static_cast<char*>(all) + static_cast<std::size_t>(root) * bytes_each;
      if (root == rank()) std::copy_n(static_cast<const char*>(mine), bytes_each, part);
      do_broadcast(part, bytes_each, root);
    }
  }

  void do_barrier() override {
    session_->call([&] {
      MPI_Request request;
      check(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
      wait(&request, 1);
    });
  }

  void do_exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) override {
    pieces(std::max(send_bytes, recv_bytes), 1, [&](std::size_t at, std::size_t size) {
      MPI_Request requests[2];
      int count = 0;
      if (at < recv_bytes)
        check(MPI_Irecv(static_cast<char*>(recv) + at, static_cast<int>(std::min(size, recv_bytes - at)), MPI_BYTE,
                        peer, 0, comm_, &requests[count++]),
              "MPI_Irecv");
      if (at < send_bytes)
        check(MPI_Isend(static_cast<const char*>(send) + at, static_cast<int>(std::min(size, send_bytes - at)),
                        MPI_BYTE, peer, 0, comm_, &requests[count++]),
              "MPI_Isend");
      wait(requests, count);
    });
  }

 private:
  // f(offset, size) over [0, bytes) in pieces whose count fits an int, in the thread that may call MPI.
  template <class F>
  void pieces(std::size_t bytes, std::size_t width, const F& f) {
    const std::size_t piece = std::max(width, chunk_ / width * width);
    session_->call([&] {
      for (std::size_t at = 0; at < bytes; at += piece) {
        f(at, std::min(piece, bytes - at));
        progress().beat();
      }
    });
  }

  // Polls instead of blocking inside MPI: Open MPI waits by spinning, and that core belongs to backward. Short waits
  // stay short; long ones sleep. Polling is also what lets abandon() end a wait for a peer that is gone.
  void wait(MPI_Request* requests, int count) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    for (;;) {
      int done = 0;
      check(MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE), "MPI_Testall");
      if (done) return;
      if (abandoned()) fail(Exit::peer, "mpi", "gave up waiting in ", progress().where());
      if (Clock::now() - begin < std::chrono::microseconds(200)) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }

  std::unique_ptr<MpiSession> session_;
  std::size_t chunk_;
  int local_rank_ = 0;
  MPI_Comm comm_ = MPI_COMM_NULL;  // a duplicate: our messages never meet those of a library
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(const Launch& launch, const MpiOptions& options) {
  require(options.chunk_bytes >= 8 && options.chunk_bytes <= (std::size_t{1} << 30), "mpi", "pieces of ",
          options.chunk_bytes, " bytes");
  auto session = std::make_unique<MpiSession>(options);
  if (session->size() != launch.size || session->rank() != launch.rank)
    fail(Exit::peer, "mpi", "started as rank ", launch.rank, " of ", launch.size, ", but MPI says rank ",
         session->rank(), " of ", session->size(),
         ": the program is linked with another MPI than the one that started it");
  return std::make_unique<MpiCommunicator>(std::move(session), options);
}

}  // namespace sieve
