# One connection of docs/wire.md, version 1, as a client or as a server, without waiting anywhere.
#
# Whoever owns the loop calls `receive` when the socket can be read, `pump` and `flush` when it can be
# written, and `tick` now and then. What comes of it is told to four subs, given as `on`:
#
#     greeted($c)              the peer has said HELLO
#     called($c, $s, $head)    a call begins; `Frames::fault` turns it away
#     message($c, $s, $bytes)  its message is whole ("" for none)
#     lost($c, $why)           the connection is closed
#
# A stream $s is a plain hash; `queue` holds the messages to send, `source` gives further ones until it
# gives undef, `finish` says that none follow.
package Frames;
use strict;
use warnings;
use Errno ();
use JSON::PP;
use List::Util qw(max min);
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime);

# LAST is the flag END: that word is Perl's own.
use constant {
    HELLO => 0, REQUEST => 1, DATA => 2, ERROR => 3, CANCEL => 4, WINDOW => 5, PING => 6, GOAWAY => 7,
    LAST => 1, MORE => 2, ACK => 4, BARE => 8, COST => 64, MAX_CREDIT => 2**31 - 1,
};
# What is accepted here. JSON::PP reads 2 MB a second, so a message has less than the default.
our %LIMITS = (
    max_frame => 2**20, max_message => 2**22, window => 2**18, max_streams => 1000, max_header => 65535,
);
# Bytes of unfinished messages on a connection. Bytes unsent at which streams wait, and at which a peer
# that sends and takes nothing is not read. Bytes in a part, so that streams take turns.
use constant { MAX_HELD => 2**24, ENOUGH => 2**16, TOO_MUCH => 2**20, PART => 2**16 };
use constant { HANDSHAKE => 5, SILENCE => 10 };    # seconds

my %STATUS = (
    400 => 'Bad Request', 404 => 'Not Found', 408 => 'Request Timeout', 413 => 'Request Entity Too Large',
    415 => 'Unsupported Media Type', 429 => 'Too Many Requests', 431 => 'Request Header Fields Too Large',
    500 => 'Internal Server Error', 503 => 'Service Unavailable',
);
my %TAKES = (
    server => {
        REQUEST, \&_request, DATA, \&_data, CANCEL, \&_cancel, WINDOW, \&_window, PING, \&_ping,
        ERROR, \&_closing,
    },
    client => { DATA, \&_data, ERROR, \&_error, WINDOW, \&_window, PING, \&_ping, GOAWAY, \&_goaway },
);
my $JSON = JSON::PP->new->utf8->canonical;

sub now { return clock_gettime(CLOCK_MONOTONIC) }

# Ends a call with an ERROR.
sub fault { my ($code, $detail, %more) = @_; die { code => $code, detail => $detail, %more } }

# Turns a call away of which nothing was executed: the caller may try another node.
sub refuse { return fault(503, $_[0], refused => JSON::PP::true) }

# Ends the connection.
sub breach { die { breach => $_[0] } }

sub new {
    my ($class, $sock, $role, %on) = @_;
    $sock->blocking(0);
    my $c = bless {
        sock => $sock, role => $role, on => \%on, in => '', out => '', held => 0, last => 0,
        streams => {}, turn => [], heard => now(), pinged => 0,
    }, $class;
    $c->_hello if $role eq 'client';
    return $c;
}

# -- what comes in --------------------------------------------------------------------------------

sub wants_reading { return length $_[0]{out} < TOO_MUCH }

sub receive {
    my ($c) = @_;
    my $size = sysread $c->{sock}, $c->{in}, 2**16, length $c->{in};
    return if !defined $size && ($!{EAGAIN} || $!{EINTR});
    return $c->close('the peer closed it') unless $size;    # half-closed is closed
    @$c{qw(heard pinged)} = (now(), 0);
    my $good = eval {
        while (!$c->{closed} and my ($kind, @frame) = $c->_next_frame) {
            my $take = $c->{peer} ? $TAKES{ $c->{role} }{$kind} : \&_first;
            breach("a frame of kind $kind from a peer that may not send it") unless $take;
            $c->$take(@frame, $kind);
        }
        1;
    };
    return $good || $c->_give_up($@);
}

sub _give_up {
    my ($c, $error) = @_;
    my $why = ref $error eq 'HASH' && $error->{breach} ? $error->{breach} : "an error here: $error";
    $c->error(0, 400, $why);
    $c->flush;
    return $c->close($why);
}

sub _next_frame {
    my ($c) = @_;
    return if length $c->{in} < 4;
    my $length = unpack 'N', $c->{in};
    my $most = 6 + ($c->{peer} ? 2 + $LIMITS{max_header} + $LIMITS{max_frame} : 4096);
    breach("a frame of $length bytes; 6 to $most allowed") if $length < 6 || $length > $most;
    return if length $c->{in} < 4 + $length;
    return (unpack 'N C C N a*', substr $c->{in}, 0, 4 + $length, '')[1 .. 4];
}

sub _first {
    my ($c, $flags, $id, $payload, $kind) = @_;
    return $c->_closing($flags, $id, $payload) if $kind == ERROR && !$id;
    my $hello = $kind == HELLO && eval { $JSON->decode($payload) };
    breach('the first frame must be a HELLO of micro')
        unless ref $hello eq 'HASH' && ($hello->{magic} // '') eq 'micro';
    my $versions = $hello->{versions};
    my ($low, $high) = map { _number($_) } ref $versions eq 'ARRAY' ? @$versions[0, 1] : ();
    breach('no common version; here it is 1') unless defined $high && $low <= 1 && $high >= 1;
    $hello->{max_header} //= 65535;
    for (qw(max_frame max_message window max_streams max_header)) {
        breach("$_ of HELLO cannot be") if _number($hello->{$_}) < ($_ eq 'max_streams' ? 1 : 1024);
    }
    breach('max_message of HELLO is below max_frame') if $hello->{max_message} < $hello->{max_frame};
    breach('window of HELLO cannot be') if $hello->{window} > MAX_CREDIT;
    $c->{peer} = $hello;
    $c->_hello if $c->{role} eq 'server';
    return $c->{on}{greeted}->($c);
}

sub _number { my ($text) = @_; return defined $text && !ref $text && $text =~ /^\d{1,15}\z/ ? $text : -1 }

sub _request {
    my ($c, $flags, $id, $payload) = @_;
    breach("REQUEST on stream $id; odd and growing ids only") if $id <= $c->{last} || $id % 2 == 0;
    $c->{last} = $id;
    my ($size, $rest) = unpack 'n a*', $payload;
    breach('a REQUEST shorter than its head') if length $payload < 2 || length $rest < $size;
    my $busy = keys %{ $c->{streams} };
    my $s = $c->_stream($id);
    $c->attempt($s, sub {
        refuse('this node is going away') if $c->{draining};
        refuse("$LIMITS{max_streams} calls on one connection") if $busy >= $LIMITS{max_streams};
        my $head = _head(substr $rest, 0, $size, '');
        $s->{deadline} = now() + $head->{timeout_ms} / 1000 if $head->{timeout_ms};
        $c->{on}{called}->($c, $s, $head);
    }) or return;
    return $c->_part($s, $flags, $rest);
}

sub _head {
    my $given = eval { $JSON->decode($_[0]) };
    fault(400, 'malformed head of a call: no JSON object') unless ref $given eq 'HASH';
    my $head = { timeout_ms => 0, content => 'application/json', metadata => {}, %$given };
    my @bad = grep { !defined $head->{$_} || ref $head->{$_} } qw(service endpoint content);
    push @bad, 'timeout_ms' unless _number($head->{timeout_ms}) >= 0 && $head->{timeout_ms} < 2**32;
    push @bad, 'metadata'
        if ref $head->{metadata} ne 'HASH' || grep { !defined || ref } values %{ $head->{metadata} };
    fault(400, "malformed head of a call: @bad") if @bad;
    return $head;
}

# The stream of a frame; nothing for one that has ended.
sub _known {
    my ($c, $id) = @_;
    breach("stream $id was never opened") if $id > $c->{last} || $id % 2 == 0;
    return $c->{streams}{$id};
}

sub _data {
    my ($c, $flags, $id, $payload) = @_;
    my $s = $c->_known($id);
    return $s && $c->_part($s, $flags, $payload);
}

sub _cancel { my ($c, undef, $id) = @_; my $s = $c->_known($id); return $s && $c->forget($s) }
# The last frame of a peer that closes.
sub _closing {
    my ($c, undef, $id, $payload) = @_;
    breach("ERROR on stream $id, from a client") if $id;
    return $c->close("the peer says: $payload");
}

# What is kept here is one stream, for another connection to have when this one ends.
sub _goaway { return $_[0]->close('the peer goes away') }

sub _error {
    my ($c, undef, $id, $payload) = @_;
    $c->_known($id) if $id;
    return $c->close("the peer says: $payload");
}

sub _ping {
    my ($c, $flags, undef, $payload) = @_;
    return $flags & ACK || $c->_frame(PING, ACK, 0, substr $payload, 0, 64);
}

sub _window {
    my ($c, undef, $id, $payload) = @_;
    breach('WINDOW takes four bytes') if length $payload != 4;
    my $s = $c->_known($id) or return;
    breach("stream $id: too much credit") if ($s->{credit} += unpack 'N', $payload) > MAX_CREDIT;
    return $c->wake($s);
}

sub _part {
    my ($c, $s, $flags, $part) = @_;
    my ($size, $more, $bare) = (length $part, $flags & MORE, $flags & BARE);
    my $cost = $bare ? 0 : COST + $size;
    for my $at ("stream $s->{id}") {
        breach("$at: DATA after END") if $s->{ended};
        breach("$at: a part of $size bytes") if $size > $LIMITS{max_frame};
        breach("$at: MORE with END or without a part") if $more && ($flags & LAST || !$size);
        breach("$at: BARE with or within a message") if $bare && ($more || $size || $s->{within});
        breach("$at: sent beyond its credit") if ($s->{room} -= $cost) < 0;
    }
    @$s{qw(within ended)} = ($more, $flags & LAST);
    # A call here has one message. Further ones are dropped and get no credit, which bounds them.
    return if $s->{taken};
    $s->{body} .= $part;
    $c->{held} += $size;
    $c->attempt($s, sub {
        fault(413, "message over $LIMITS{max_message} bytes") if length $s->{body} > $LIMITS{max_message};
        fault(429, 'over ' . MAX_HELD . ' bytes unread on this connection') if $c->{held} > MAX_HELD;
    }) or return;
    $c->_credit($s, $cost) unless $s->{ended};
    return if $more || ($bare && !$s->{ended});
    $c->{held} -= length $s->{body};
    my $body = $s->{body};
    @$s{qw(body taken)} = ('', $c->{role} eq 'server');
    return $c->attempt($s, sub { $c->{on}{message}->($c, $s, $body) });
}

sub _credit {
    my ($c, $s, $cost) = @_;
    return if ($s->{due} += $cost) * 2 < $LIMITS{window};
    $c->_frame(WINDOW, 0, $s->{id}, pack 'N', $s->{due});
    $s->{room} += $s->{due};
    return $s->{due} = 0;
}

# -- what goes out --------------------------------------------------------------------------------

sub _frame {
    my ($c, $kind, $flags, $id, $payload) = @_;
    return $c->{out} .= pack 'N C C N a*', 6 + length $payload, $kind, $flags, $id, $payload;
}

sub _hello {
    return $_[0]->_frame(HELLO, 0, 0, $JSON->encode({ magic => 'micro', versions => [1, 1], %LIMITS }));
}

sub error {
    my ($c, $id, $code, $detail, %more) = @_;
    my %form = (%more, id => 'perl', code => $code, detail => substr($detail, 0, 500));
    return $c->_frame(ERROR, LAST, $id, $JSON->encode({ %form, status => $STATUS{$code} }));
}

# Opens a stream as a client, without a message yet.
sub request {
    my ($c, %head) = @_;
    $c->{last} += $c->{last} ? 2 : 1;
    $c->_frame(REQUEST, BARE, $c->{last}, pack 'n/a*', $JSON->encode(\%head));
    return $c->_stream($c->{last});
}

# Takes no new call.
sub goaway { my ($c) = @_; return $c->{draining}++ || $c->_frame(GOAWAY, 0, $c->{last}, '') }

sub _stream {
    my ($c, $id) = @_;
    return $c->{streams}{$id} = {
        id => $id, credit => $c->{peer}{window}, room => $LIMITS{window}, due => 0, body => '', queue => [],
    };
}

# Does what may end a call; false when it did.
sub attempt {
    my ($c, $s, $what) = @_;
    return 1 if eval { $what->(); 1 };
    my $error = ref $@ eq 'HASH' ? $@ : { code => 500, detail => "$@" };
    die $error if $error->{breach};
    $c->close($error->{detail}) if $c->{role} eq 'client';    # it has one stream, and cannot say why
    return 0 if $c->{closed};
    $c->forget($s);
    $c->error($s->{id}, delete @$error{qw(code detail)}, %$error);
    return 0;
}

sub forget {
    my ($c, $s) = @_;
    $c->{held} -= length $s->{body};
    @$s{qw(over body)} = (1, '');
    return delete $c->{streams}{ $s->{id} };
}

# There is something to send, or credit to send it with.
sub wake { my ($c, $s) = @_; return $s->{awake}++ || push @{ $c->{turn} }, $s }

# Streams take turns while the connection has room; one without credit waits for WINDOW.
sub pump {
    my ($c) = @_;
    while (length $c->{out} < ENOUGH and my $s = shift @{ $c->{turn} }) {
        $s->{awake} = 0;
        my $sent;
        $c->attempt($s, sub { $sent = $c->_send($s) }) unless $s->{over};
        $c->wake($s) if $sent && !$s->{over};
    }
    return;
}

# The next frame of a stream; true when another may follow.
sub _send {
    my ($c, $s) = @_;
    my $queue = $s->{queue};
    if (!@$queue && $s->{source}) {
        my $next = $s->{source}->();
        defined $next ? push @$queue, $next : delete $s->{source};
        $s->{finish} = !defined $next;
    }
    if (!@$queue) {
        return 0 unless $s->{finish};
        $c->_frame(DATA, LAST | BARE, $s->{id}, '');
        $c->forget($s);
        return 0;
    }
    my ($size, $peer) = (length $queue->[0], $c->{peer});
    fault(413, "an answer of $size bytes; $peer->{max_message} allowed") if $size > $peer->{max_message};
    # A part is worth sending when it is all, or half a window: that much credit comes back for sure.
    return 0 if $s->{credit} < COST + min($size, max(1, int($peer->{window} / 2) - COST));
    my $part = min($size, $s->{credit} - COST, $peer->{max_frame}, PART);
    my $last = $part == $size && @$queue == 1 && $s->{finish};
    my $flags = $part < $size ? MORE : $last ? LAST : 0;
    $c->_frame(DATA, $flags, $s->{id}, substr $queue->[0], 0, $part, '');
    $s->{credit} -= COST + $part;
    shift @$queue if $part == $size;
    $c->forget($s) if $last;
    return !$last;
}

sub flush {
    my ($c) = @_;
    return if $c->{closed} || $c->{out} eq '';
    my $sent = syswrite $c->{sock}, $c->{out};
    return substr $c->{out}, 0, $sent, '' if defined $sent;
    return $!{EAGAIN} || $!{EINTR} || $c->close("$!");
}

# -- time, and the end ----------------------------------------------------------------------------

sub tick {
    my ($c, $now) = @_;
    my $silent = $now - $c->{heard};
    return $c->_give_up({ breach => 'no HELLO within ' . HANDSHAKE . ' s' })
        if !$c->{peer} && $silent > HANDSHAKE;
    return $c->close('the peer is silent') if $silent > 2 * SILENCE;
    $c->_frame(PING, 0, 0, '') if $silent > SILENCE && !$c->{pinged}++;
    for my $s (grep { ($_->{deadline} // $now) < $now } values %{ $c->{streams} }) {
        $c->attempt($s, sub { fault(408, 'the deadline passed while it was served') });
    }
    return;
}

sub close {
    my ($c, $why) = @_;
    return if $c->{closed}++;
    $c->forget($_) for values %{ $c->{streams} };
    $c->{sock}->close;
    return $c->{on}{lost}->($c, $why);
}

1;
