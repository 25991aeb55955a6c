# A service in another language: greets and counts. It is made from docs/wire.md alone, with what
# Perl has by itself.
#
#     micro run examples/perl --command "perl main.pl"
#     micro call perl Perl.Call '{"name":"Alice"}'
#
# One process, one loop: nothing here waits but `select`. Frames.pm is the protocol.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use B ();
use Frames;
use IO::Select;
use IO::Socket::IP;
use IO::Socket::UNIX;
use JSON::PP;
use List::Util qw(max min sum0);

# Seconds; the pauses between attempts to register grow from the first to the last.
use constant { TTL => 30, PAUSE => 0.02, LONGEST => 1, LEAVING => 0.1, DRAIN => 30, GRAIN => 0.1 };
use constant { MAX_CONNECTIONS => 500, MAX_COUNT => 1_000_000_000 };

for (qw(MICRO_RUN MICRO_INSTANCE MICRO_REGISTRY)) {
    die "$_ is not set; start this with: micro run examples/perl --command 'perl main.pl'\n"
        unless $ENV{$_};
}
my $JSON = JSON::PP->new->utf8->canonical;
my @REGISTRIES = split /,/, $ENV{MICRO_REGISTRY};
my $path = "$ENV{MICRO_RUN}/$ENV{MICRO_INSTANCE}.sock";
$path = "$ENV{MICRO_RUN}/perl-$$.sock" if length $path > 107;    # longer is no path of a socket
my ($STARTED, $requests, $errors) = (time, 0, 0);

# -- what the service does ------------------------------------------------------------------------

my %STRING = (type => 'string');
my %INTEGER = (type => 'integer', minimum => 0, maximum => MAX_COUNT);
my %ENDPOINTS = (
    'Perl.Call' => {
        run => \&greet, about => 'Greet somebody.', stream => '',
        takes => { name => { %STRING, default => 'World' } }, gives => { message => \%STRING },
    },
    'Perl.Count' => {
        run => \&count, about => 'Count from 1.', stream => 'server',
        takes => { to => \%INTEGER }, gives => { value => \%INTEGER },
    },
    # Every service has these two. They are not published.
    'Debug.Health' => { run => sub { return { status => 'ok', checks => 0 } } },
    'Debug.Stats' => { run => \&stats },
);
my %FOLDED = map { fold($_) => $ENDPOINTS{$_} } keys %ENDPOINTS;

sub greet {
    my ($given) = @_;
    my $name = exists $given->{name} ? $given->{name} : 'World';
    Frames::fault(400, 'name must be a string') unless is_text($name);
    return { message => "Hello $name from Perl" };
}

# The answer is asked for value by value, as fast as the caller reads.
sub count {
    my ($given) = @_;
    my ($to, $value) = ($given->{to}, 0);
    Frames::fault(400, 'to must be an integer from 0 to ' . MAX_COUNT)
        if !defined $to || ref $to || is_text($to) || $to !~ /^\d{1,10}\z/ || $to > MAX_COUNT;
    return sub { return $value < $to ? { value => ++$value } : undef };
}

# Perl takes one for the other; JSON::PP leaves the flag POK on strings and not on numbers.
sub is_text {
    my ($value) = @_;
    return defined $value && !ref $value && B::svref_2object(\$value)->FLAGS & B::SVf_POK;
}

# -- serving --------------------------------------------------------------------------------------

my %connections;    # by themselves
# The connection to a registry; when the end was asked for; whether new calls are refused by now.
my ($registry, $leaving, $left);

sub fold { my ($name) = @_; $name =~ tr/-_//d; return lc $name }

sub shown { return "'" . substr($_[0], 0, 80) . "'" }

sub called {
    my ($c, $s, $head) = @_;
    Frames::refuse('this node serves perl, not ' . shown($head->{service})) if lc $head->{service} ne 'perl';
    my $there = join ', ', sort keys %ENDPOINTS;
    $s->{endpoint} = $FOLDED{ fold($head->{endpoint}) }
        or Frames::fault(404, "no endpoint @{[shown($head->{endpoint})]} in perl; there is $there");
    Frames::fault(415, "content type @{[shown($head->{content})]}; send application/json")
        unless $head->{content} =~ m{^application/json\s*(;|\z)}i;
    return;
}

sub message {
    my ($c, $s, $body) = @_;
    $requests++;
    my $given = eval { $JSON->decode($body eq '' ? '{}' : $body) };
    Frames::fault(400, 'malformed JSON: ' . $@ =~ s/ at \S+ line \d+\.\n//r) if $@;
    Frames::fault(400, 'the request must be a JSON object') unless ref $given eq 'HASH';
    my $answer = eval { $s->{endpoint}{run}->($given) };
    if (!$answer) {
        $errors++ unless ref $@;
        die $@;
    }
    if (ref $answer eq 'CODE') {
        $s->{source} = sub { my $next = $answer->(); return $next && $JSON->encode($next) };
    } else {
        @$s{qw(queue finish)} = ([$JSON->encode($answer)], 1);
    }
    return $c->wake($s);
}

sub stats {
    open my $file, '<', '/proc/self/statm' or die "no size of memory: $!\n";
    my $pages = (split ' ', <$file>)[1];
    my @served = grep { $_->{role} eq 'server' } values %connections;
    return {
        started => $STARTED, uptime => time - $STARTED, memory => 4096 * $pages, pid => $$,
        requests => $requests, errors => $errors, sockets => scalar keys %connections,
        in_flight => -1 + sum0(map { scalar keys %{ $_->{streams} } } @served),
        buffered => sum0(map { $_->{held} + length($_->{in}) + length($_->{out}) } @served),
    };
}

# -- being found: the registration lasts as long as a stream to a registry ------------------------

my %attachment = (next => 0, pause => PAUSE, at => 0, said => '');

# Connect to the first registry that answers.
sub attach {
    for (@REGISTRIES) {
        my ($kind, $where) = split /:/, $REGISTRIES[ $attachment{next} % @REGISTRIES ], 2;
        my $sock =
            $kind eq 'unix'
            ? IO::Socket::UNIX->new(Peer => $where, Timeout => 1)
            : IO::Socket::IP->new(PeerAddr => $where, Timeout => 1);
        if ($sock) {
            $registry = Frames->new(
                $sock, 'client', greeted => \&register, message => \&attached, lost => \&detached,
            );
            return $connections{$registry} = $registry;
        }
        $attachment{next}++;
    }
    return again('no registry at ' . join ', ', @REGISTRIES);
}

sub register {
    my ($c) = @_;
    $attachment{stream} = $c->request(service => 'registry', endpoint => 'Registry.Attach');
    return say_to_registry({
        ttl => TTL,
        instance => {
            service => 'perl', version => $ENV{MICRO_SERVICE_VERSION} || 'latest',
            namespace => $ENV{MICRO_NAMESPACE} || 'micro',
            metadata => { description => 'Greets and counts, in Perl' },
            endpoints => [ map { published($_) } grep { $ENDPOINTS{$_}{about} } sort keys %ENDPOINTS ],
            node => {
                id => $ENV{MICRO_INSTANCE}, addresses => ["unix:$path"], host => $ENV{MICRO_HOST} // '',
                protocol => 'frames', weight => 100, metadata => {},
            },
        },
    });
}

sub published {
    my ($name) = @_;
    my $endpoint = $ENDPOINTS{$name};
    return {
        name => $name, stream => $endpoint->{stream}, metadata => { description => $endpoint->{about} },
        request => { type => 'object', properties => $endpoint->{takes} },
        response => { type => 'object', properties => $endpoint->{gives} },
    };
}

sub say_to_registry {
    my ($message) = @_;
    push @{ $attachment{stream}{queue} }, $JSON->encode($message);
    @attachment{qw(asked renew)} = (Frames::now(), undef);
    return $registry->wake($attachment{stream});
}

sub attached {
    my ($c, $s) = @_;
    return $c->close('it ended the registration') if $s->{ended};
    note("registered as $ENV{MICRO_INSTANCE}");
    return @attachment{qw(pause asked renew)} = (PAUSE, undef, Frames::now() + TTL / 3);
}

sub detached {
    my ($c, $why) = @_;
    delete $connections{$c};
    $attachment{next}++;
    return again($why);
}

sub again {
    my ($why) = @_;
    @attachment{qw(stream asked renew)} = ();
    $registry = undef;
    return if $leaving;
    note("not registered: $why");
    $attachment{at} = Frames::now() + $attachment{pause} * (0.5 + rand);
    return $attachment{pause} = min(LONGEST, 2 * $attachment{pause});
}

# Says what is new, once.
sub note {
    my ($what) = @_;
    print STDERR "$what\n" if $what ne $attachment{said};
    return $attachment{said} = $what;
}

sub keep_registered {
    my ($now) = @_;
    return $now >= $attachment{at} && attach() unless $registry;
    return $registry->close('the registry is silent')
        if $attachment{asked} && $now > $attachment{asked} + TTL;
    return $attachment{renew} && $now > $attachment{renew} && say_to_registry({});
}

# -- the loop -------------------------------------------------------------------------------------

sub listen_at {
    my ($where) = @_;
    unlink $where if -S $where && !IO::Socket::UNIX->new(Peer => $where);    # of one that was killed
    my $before = umask 0177;
    my $listener = IO::Socket::UNIX->new(Local => $where, Listen => 1024)
        or die "cannot listen at $where: $!\n";
    umask $before;
    $listener->blocking(0);
    return $listener;
}

sub take_connection {
    my ($listener) = @_;
    my $sock = $listener->accept or return;
    my $c = Frames->new(
        $sock, 'server',
        greeted => sub { $_[0]->goaway if $left },
        called => \&called, message => \&message, lost => sub { delete $connections{ $_[0] } },
    );
    return $connections{$c} = $c;
}

# Deregister; a tenth of a second later take no more calls; then see the last ones out. True at the end.
sub has_left {
    my ($now, $listener) = @_;
    if ($registry) {
        my $gone = $registry;
        $registry = undef;
        $gone->close('this node is going away');
    }
    return 0 if $now < $leaving + LEAVING;
    if (!$left++) {
        $listener->close;
        unlink $path;
        $_->{peer} ? $_->goaway : $_->close('this node is going away') for values %connections;
    }
    return !%connections || $now > $leaving + DRAIN;
}

sub turn {
    my ($listener) = @_;
    $_->pump for values %connections;
    $_->flush for values %connections;
    my %by = map { fileno $_->{sock} => $_ } values %connections;
    my $reads = IO::Select->new(map { $_->{sock} } grep { $_->wants_reading } values %by);
    my $writes = IO::Select->new(map { $_->{sock} } grep { $_->{out} ne '' } values %by);
    $reads->add($listener) if !$left && %by < MAX_CONNECTIONS;
    my $wait = $registry || $leaving ? GRAIN : max(0, min(GRAIN, $attachment{at} - Frames::now()));
    my ($readable) = IO::Select::select($reads, $writes, undef, $leaving ? PAUSE : $wait);
    for my $sock (@{ $readable || [] }) {
        $sock == $listener ? take_connection($listener) : $by{ fileno $sock }->receive;
    }
    return;
}

sub main {
    my $listener = listen_at($path);
    local $SIG{PIPE} = 'IGNORE';
    local @SIG{qw(TERM INT)} = (sub { $leaving //= Frames::now() }) x 2;
    while (1) {
        turn($listener);
        my $now = Frames::now();
        $_->tick($now) for values %connections;
        last if $leaving && has_left($now, $listener);
        keep_registered($now) unless $leaving;
    }
    return;
}

main();
