#!/usr/bin/env bash
# Apache Kafka itself, for the tests: KRaft mode, broker and controller in one JVM, jars through Maven.
#
#   eval "$(.ci/kafka.sh start)"     starts it unless it runs; prints export TEST_KAFKA_BROKERS=…
#   .ci/kafka.sh stop                stops it; its log of messages stays
#   .ci/kafka.sh clean               stops it and removes its messages
#
# TEST_KAFKA_PORT chooses the port (29092; the controller takes the next one). Only exports go to stdout.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CI_DIR=$ROOT_DIR/.ci
HOME_DIR=$STATE_DIR/kafka
PORT=${TEST_KAFKA_PORT:-29092}
PID_FILE=$HOME_DIR/kafka.pid
LOG_FILE=$HOME_DIR/kafka.out
START_TIMEOUT_S=60
STOP_TIMEOUT_S=30
# The tests send messages of 10 MB to see them refused by the pipeline, not by the broker.
MAX_MESSAGE_BYTES=20971520
JAVA=(java -Xms256m -Xmx512m "-Dlog4j2.configurationFile=$CI_DIR/kafka-log4j2.properties" -cp "$HOME_DIR/lib/*")

# 17 is the oldest Java that Kafka 4 runs on; Debian 12's default.
ensure_java() {
    apt_install java default-jre-headless
    apt_install mvn maven
}

ensure_jars() {
    local stamp=$HOME_DIR/lib/.complete
    [ -f "$stamp" ] && [ ! "$CI_DIR/pom.xml" -nt "$stamp" ] && return
    say "fetching the jars of Apache Kafka through Maven"
    rm -rf "${HOME_DIR:?}/lib"
    mkdir -p "$HOME_DIR/lib"
    mvn -q -B -f "$CI_DIR/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$HOME_DIR/lib" >&2
    touch "$stamp"
}

write_config() {
    cat >"$HOME_DIR/server.properties" <<CONFIG
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((PORT + 1))
listeners=PLAINTEXT://127.0.0.1:$PORT,CONTROLLER://127.0.0.1:$((PORT + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$HOME_DIR/data
message.max.bytes=$MAX_MESSAGE_BYTES
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=8388608
CONFIG
}

format_storage() {
    [ -f "$HOME_DIR/data/meta.properties" ] && return
    local cluster_id
    cluster_id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    # An id that begins with a dash would be taken for an option.
    "${JAVA[@]}" kafka.tools.StorageTool format --config "$HOME_DIR/server.properties" \
        --cluster-id "k${cluster_id:1}" >&2
}

wait_until_ready() {
    local deadline=$((SECONDS + START_TIMEOUT_S))
    until grep -q 'Kafka Server started' "$LOG_FILE" && port_taken "$PORT"; do
        if ! alive "$PID_FILE" kafka.Kafka || [ $SECONDS -ge $deadline ]; then
            tail -20 "$LOG_FILE" >&2
            stop
            die "Kafka was not ready within $START_TIMEOUT_S s; its whole log: $LOG_FILE"
        fi
        sleep 0.2
    done
}

start() {
    mkdir -p "$HOME_DIR"
    if ! alive "$PID_FILE" kafka.Kafka; then
        port_taken "$PORT" && die "port $PORT is taken; choose another with TEST_KAFKA_PORT"
        ensure_java
        ensure_jars
        write_config
        format_storage
        : >"$LOG_FILE"
        # Its own session: a Ctrl-C for the tests is not one for the server, stop ends it.
        setsid "${JAVA[@]}" kafka.Kafka "$HOME_DIR/server.properties" >"$LOG_FILE" 2>&1 </dev/null &
        echo $! >"$PID_FILE"
    fi
    wait_until_ready
    say "Apache Kafka is ready on 127.0.0.1:$PORT, pid $(cat "$PID_FILE")"
    echo "export TEST_KAFKA_BROKERS=127.0.0.1:$PORT"
}

stop() {
    alive "$PID_FILE" kafka.Kafka || {
        rm -f "$PID_FILE"
        return 0
    }
    local pid deadline=$((SECONDS + STOP_TIMEOUT_S))
    pid=$(cat "$PID_FILE")
    kill "$pid"
    while alive "$PID_FILE" kafka.Kafka; do
        [ $SECONDS -ge $deadline ] && kill -9 "$pid"
        sleep 0.2
    done
    rm -f "$PID_FILE"
    say "stopped"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    clean) stop && rm -rf "$HOME_DIR/data" ;;
    *) die "takes start, stop or clean" ;;
esac
